/* The smallest guest: real mode, adds two registers, writes the sum to a port, halts. It shows that /dev/kvm runs
 * guests at all, before anything larger is blamed.
 *
 *   kvm-probe          runs it
 *   kvm-probe --hold   makes VMs and keeps them until it is killed: see hold() */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MUST(what, condition)                                                                                        \
    do {                                                                                                             \
        if (!(condition)) {                                                                                          \
            perror("kvm-probe: " what);                                                                              \
            return 1;                                                                                                \
        }                                                                                                            \
    } while (0)

/* Linux patches its own code when the first VM is made and when the last one goes (preempt_notifier_key, which every
 * switch of threads looks at; KVM's own keys for vCPUs without a local APIC and for those whose APIC is off): it writes an
 * INT3 over the instruction, and that is taken away last. QEMU's translation, where its CPUs run side by side, now and then
 * goes on with the INT3 that is not there any more: the handler finds nothing to do and returns to it, with interrupts off,
 * for ever, soon on both CPUs, and the emulated machine stands still. With a VM of both kinds kept, the code is patched once
 * and not at each run, which is faster, too. */
static int hold(void) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    MUST("open /dev/kvm", kvm >= 0);
    for (int with_apic = 0; with_apic <= 1; with_apic++) {
        int vm = ioctl(kvm, KVM_CREATE_VM, 0UL);
        MUST("KVM_CREATE_VM", vm >= 0);
        MUST("KVM_CREATE_IRQCHIP", !with_apic || ioctl(vm, KVM_CREATE_IRQCHIP, 0UL) == 0);
        MUST("KVM_CREATE_VCPU", ioctl(vm, KVM_CREATE_VCPU, 0UL) >= 0);
    }
    puts("held");
    fflush(stdout);
    pause();
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--hold") == 0)
        return hold();
    static const uint8_t code[] = {
        0xba, 0xf8, 0x03, /* mov dx, 0x3f8 */
        0x00, 0xd8,       /* add al, bl */
        0xee,             /* out dx, al */
        0xf4,             /* hlt */
    };
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    MUST("open /dev/kvm", kvm >= 0);
    MUST("API version", ioctl(kvm, KVM_GET_API_VERSION, 0) == 12);
    int vm = ioctl(kvm, KVM_CREATE_VM, 0UL);
    MUST("KVM_CREATE_VM", vm >= 0);
    void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST("mmap", memory != MAP_FAILED);
    memcpy(memory, code, sizeof code);
    struct kvm_userspace_memory_region region = {
        .slot = 0, .guest_phys_addr = 0x1000, .memory_size = 4096, .userspace_addr = (uint64_t)memory};
    MUST("KVM_SET_USER_MEMORY_REGION", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0UL);
    MUST("KVM_CREATE_VCPU", vcpu >= 0);
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    MUST("mmap of kvm_run", run != MAP_FAILED);
    struct kvm_sregs segments;
    MUST("KVM_GET_SREGS", ioctl(vcpu, KVM_GET_SREGS, &segments) == 0);
    segments.cs.base = 0;
    segments.cs.selector = 0;
    MUST("KVM_SET_SREGS", ioctl(vcpu, KVM_SET_SREGS, &segments) == 0);
    struct kvm_regs registers = {.rip = 0x1000, .rax = 40, .rbx = 2, .rflags = 2};
    MUST("KVM_SET_REGS", ioctl(vcpu, KVM_SET_REGS, &registers) == 0);
    MUST("KVM_RUN", ioctl(vcpu, KVM_RUN, 0) == 0);
    if (run->exit_reason != KVM_EXIT_IO || ((uint8_t *)run)[run->io.data_offset] != 42) {
        fprintf(stderr, "kvm-probe: exit reason %u instead of an OUT of 42\n", run->exit_reason);
        return 1;
    }
    MUST("KVM_RUN", ioctl(vcpu, KVM_RUN, 0) == 0);
    if (run->exit_reason != KVM_EXIT_HLT) {
        fprintf(stderr, "kvm-probe: exit reason %u instead of HLT\n", run->exit_reason);
        return 1;
    }
    return 0;
}
