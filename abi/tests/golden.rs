//! The layout of everything that crosses a border, against the golden file.
//!
//! `CLOAK_WRITE_GOLDEN=1 cargo test --package cloak-abi --test golden` writes the file anew; a layout that
//! changed needs another [`cloak_abi::VERSION`] in the same commit.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;

use cloak_abi::anchor::{self, AnchorPage, AnchorSlot};
use cloak_abi::boot::{
    self, BootBlock, ContextBlock, LaunchBlock, LibosHeader, Parameters, PartBlock, platform,
};
use cloak_abi::config::{Tag, mount_flags, run_flags};
use cloak_abi::exec::{self, ExecPage, ExecSlot, exec_flags};
use cloak_abi::hostop::{self, HostOp, resolve};
use cloak_abi::kcall::{self, Kcall, KcallError, PageOp, PageOpKind};
use cloak_abi::layout;
use cloak_abi::ring::{self, EventPage, QueuePage, SharedHeader, Slot, Stat, exit_status};
use cloak_abi::sim::{self, SimCall, TdRegisters};
use cloak_abi::stop::Stop;
use cloak_abi::vcpu::{self, MonitorCall, VcpuBlock, VcpuState};

/// Offset and size of each field. The pattern makes a field that is missing here an error of the compiler;
/// padding is private, so that a structure with some ends in `..` and shows it as gaps and in its size.
macro_rules! structure {
    ($out:ident, $name:ident { $($field:ident),* } $($rest:tt)*) => {
        let _ = |s: &$name| { let $name { $($field: _,)* $($rest)* } = s; };
        writeln!($out, "\nstruct {}: {} bytes", stringify!($name), size_of::<$name>()).unwrap();
        $(writeln!(
            $out,
            "  {:>6} {:>6} {}",
            offset_of!($name, $field),
            size_of_field(|s: &$name| &s.$field),
            stringify!($field)
        ).unwrap();)*
    };
}

/// Number of each variant. The match makes a variant that is missing here an error of the compiler.
macro_rules! variants {
    ($out:ident, $name:ident: $($variant:ident),*) => {
        let _ = |v: $name| match v { $($name::$variant => (),)* };
        writeln!($out, "\nenum {}", stringify!($name)).unwrap();
        $(writeln!($out, "  {:>3} {}", $name::$variant as u64, stringify!($variant)).unwrap();)*
    };
}

macro_rules! constants {
    ($out:ident, $module:ident: $($name:ident),*) => {
        writeln!($out, "\nconstants of {}", stringify!($module)).unwrap();
        $(writeln!($out, "  {:#x} {}", $module::$name as u64, stringify!($name)).unwrap();)*
    };
}

fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

fn describe() -> String {
    let mut out = format!("version {}\n", cloak_abi::VERSION);
    constants(&mut out);
    structures(&mut out);
    numbers(&mut out);
    operations(&mut out);
    out
}

fn constants(out: &mut String) {
    constants!(
        out, layout: PAGE, LARGE, MAX_VCPUS, MAX_RAM, MIN_RAM, HOLE_START, HOLE_END, BOOT_GPA, ROOT_GPA,
        SECRETS_GPA, CPUID_GPA, PARAMETERS_GPA, LAUNCH_TABLES_GPA, LAUNCH_TABLES, RESET_GPA, KERNEL_GPA, PLATFORM_GPA,
        PLATFORM_LEN, GHCBS_GPA, MESSAGES_GPA, CERTIFICATES_GPA, CERTIFICATES_LEN, CONFIG_GPA, CONFIG_LEN, LAUNCH_WINDOW, SIM_PORT, SHARED_GPA, KERNEL_VA, KERNEL_PHYS_VA, LIBOS_SLOT, LIBOS_BASE, LIBOS_END, LIBOS_IMAGE_MAX,
        LIBOS_VCPU_VA, LIBOS_SHARED_VA, LIBOS_PHYS_VA, USER_MIN, USER_END, MAX_CONTEXTS, MAX_SEGMENTS, LAST_PORT, KICK_VECTOR
    );
    constants!(out, anchor: MARK_WORDS, ANCHORS);
    constants!(out, boot: BOOT_MAGIC, LAUNCH_MAGIC, PARAMETERS_MAGIC, LIBOS_MAGIC, MAX_PARTS);
    constants!(out, platform: PLAIN, SNP, TDX);
    constants!(out, sim: UNCHANGED);
    constants!(out, vcpu: MAX_OPS);
    constants!(
        out, kcall: KCALLS, REPORT_DATA, EXTENSION, ROOT_KEY, MAX_SPACES, ALL_SPACES, PTE_P, PTE_W, PTE_U, PTE_A, PTE_D, PTE_PS, PTE_SHARED, PTE_SOFT, PTE_NX, PTE_ADDR,
        PTE_ALLOWED
    );
    constants!(
        out, ring: SHARED_MAGIC, TYPED, SLOTS, BUFFER, QUEUE, EVENTS, QUEUES_AT, QUEUE_PAGE, EVENTS_AT, SLOTS_AT,
        BUFFERS_AT, SHARED_LEN, STATS
    );
    constants!(out, exit_status: PANIC);
    constants!(out, hostop: ROOT_FD, MAX_MOUNTS, MAX_IO, PATH_MAX, ADDR_MAX, CONTROL_MAX);
    constants!(out, resolve: ROOTED, COMPONENT);
    constants!(out, mount_flags: READ_ONLY, MEMORY, MEASURED, OVERLAY, CIPHERTEXT, EXCLUSIVE);
    constants!(out, run_flags: TRACE, NO_PATCH, NO_NETWORK, EXEC, PRIVATE_NETWORK, SIMULATED);
    constants!(out, exec: EXECS, MESSAGE_WORDS, HEAD_LEN, REQUEST_MAX, LEN);
    constants!(out, exec_flags: TERMINAL);
}

fn structures(out: &mut String) {
    structure!(
        out,
        TdRegisters {
            rax,
            rcx,
            rdx,
            rbx,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15
        }
    );
    structure!(
        out,
        LaunchBlock {
            magic,
            version,
            platform,
            private,
            shared,
            parameters,
            secrets,
            cpuid,
            root,
            end,
            libos
        }
    );
    structure!(
        out,
        Parameters {
            magic,
            version,
            memory,
            vcpus,
            tsc_khz,
            config_len,
            identity
        }
    );
    structure!(
        out,
        PartBlock {
            va,
            memory,
            content,
            gpa,
            flags
        }
    );
    structure!(
        out,
        BootBlock {
            magic,
            version,
            contexts,
            list
        }
    );
    structure!(
        out,
        ContextBlock {
            index,
            vcpus,
            first_vcpu,
            own_tables,
            frames,
            segments,
            table_pool,
            table_pool_end,
            table_pool_next,
            root,
            free_frames,
            libos_gpa,
            vcpu_blocks,
            config_gpa,
            config_len,
            tsc_khz,
            platform,
            private_bit,
            identity
        }
    );
    structure!(
        out,
        LibosHeader {
            magic,
            version,
            start,
            syscall,
            syscall_stashed,
            upcall,
            kcall,
            boot_copy,
            syscall_probe
        }
    );
    structure!(out, AnchorSlot { mark, result });
    structure!(out, AnchorPage { slots });
    structure!(
        out,
        ExecSlot {
            signals,
            window,
            status,
            message_len,
            message
        }
    );
    structure!(
        out,
        ExecPage {
            asked,
            len,
            news,
            slots
        }..
    );
    structure!(
        out,
        VcpuBlock {
            rip,
            rsp,
            rflags,
            vector,
            error,
            cr2,
            syscall_rip,
            syscall_rflags,
            pending,
            state,
            stale,
            index,
            interrupts,
            exceptions,
            kcalls,
            rax,
            rcx,
            cs,
            ops,
            dropped
        }
    );
    structure!(
        out,
        PageOp {
            va_kind,
            len,
            gpa,
            flags
        }
    );
    structure!(
        out,
        SharedHeader {
            magic,
            version,
            service_asleep,
            signals,
            exit_status,
            message_len,
            vcpus,
            service_gone,
            waiting,
            awake,
            reserved,
            timer,
            stats,
            message
        }
    );
    structure!(
        out,
        QueuePage {
            sq_head,
            sq_tail,
            state,
            deadline,
            cq_tail,
            cq_head,
            sq,
            cq
        }..
    );
    structure!(
        out,
        EventPage {
            tail,
            head,
            overflow,
            entries
        }..
    );
    structure!(
        out,
        Slot {
            op,
            vcpu,
            args,
            seq,
            result,
            extra,
            done
        }..
    );
}

fn numbers(out: &mut String) {
    variants!(
        out, Kcall: PageOps, Flush, Kick, Start, Exit, SyscallMode, SpaceNew, SpaceSwitch, SpaceFree, SpaceCopy, Shoot, Accept, Report, Extend, Key
    );
    variants!(out, KcallError: Invalid, Address, Frame, Tables, Busy, Absent, Platform);
    variants!(out, PageOpKind: Map, Unmap, Protect, Shoot, Clean);
    variants!(out, VcpuState: Offline, Running, Polling, Halted);
    variants!(out, SimCall: Pvalidate, RmpAdjust, VmgExit, Tdcall, VectorState);
    out.push_str("\nenum Stop\n");
    for stop in Stop::ALL {
        writeln!(out, "  {:>3} {stop:?}", *stop as u8).unwrap();
    }
    variants!(out, MonitorCall: Halt, Kick, Start, Exit, Panic, Anchor, Ended);
    variants!(
        out, Stat: Calls, Trapped, Forwarded, Exceptions, Kcalls, Interrupts, Patched, Switches, Halts, Faults,
        Doorbells, Signals, Entered, Frames, HostFiles, Threads, Dropped
    );
    variants!(
        out, Tag: Program, Arg, Env, Cwd, Mount, Ids, HostName, Flags, MaxFiles, Seed, Stdio, Umask, Protected, Manifest, File, Link, Segment, Exec, Published,
            NameServer, Resolver, Resident, Signals
    );
}

fn operations(out: &mut String) {
    out.push_str("\nenum HostOp\n");
    for (op, name) in HostOp::ALL {
        writeln!(out, "  {:>3} {name}", *op as u32).unwrap();
    }
}

#[test]
fn layout_is_the_golden_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/layout.txt");
    let now = describe();
    if std::env::var_os("CLOAK_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &now).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("abi/golden/layout.txt is in the tree");
    for (old, new) in golden.lines().zip(now.lines()) {
        assert_eq!(old, new, "{ADVICE}");
    }
    assert_eq!(golden, now, "{ADVICE}");
}

const ADVICE: &str = "the layout changed: change abi::VERSION, then write abi/golden/layout.txt anew with \
                      CLOAK_WRITE_GOLDEN=1 cargo test --package cloak-abi --test golden";
