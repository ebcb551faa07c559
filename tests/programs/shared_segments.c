/* System V shared memory: keys, attachments that processes inherit and lose, removal while attached. */
#include "check.h"
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE 10000

static long attached(int id) {
    struct shmid_ds about;
    return shmctl(id, IPC_STAT, &about) == 0 ? (long)about.shm_nattch : -1;
}

static int exits(pid_t child, int code) {
    int status = -1;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == code;
}

static void keys(void) {
    key_t key = 0x5eed0000 | (getpid() & 0xffff);
    CHECK_FAILS("an absent key", shmget(key, SIZE, 0600), ENOENT);
    int id = shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0640);
    MUST(id >= 0);
    CHECK("found again", shmget(key, SIZE, 0) == id && shmget(key, 0, 0) == id);
    CHECK_FAILS("exclusively", shmget(key, SIZE, IPC_CREAT | IPC_EXCL | 0600), EEXIST);
    CHECK_FAILS("larger than it is", shmget(key, SIZE + 1, 0), EINVAL);
    CHECK_FAILS("of no size", shmget(IPC_PRIVATE, 0, 0600), EINVAL);
    struct shmid_ds about;
    MUST(shmctl(id, IPC_STAT, &about) == 0);
    CHECK("its description", about.shm_segsz == SIZE && about.shm_perm.mode == 0640 && about.shm_nattch == 0 &&
                                 about.shm_cpid == getpid() && about.shm_perm.__key == key && about.shm_ctime > 0);
    about.shm_perm.mode = 0600;
    CHECK("other rights", shmctl(id, IPC_SET, &about) == 0 && shmctl(id, IPC_STAT, &about) == 0 &&
                              about.shm_perm.mode == 0600);
    CHECK("removed", shmctl(id, IPC_RMID, NULL) == 0);
    CHECK_FAILS("gone by number", shmctl(id, IPC_STAT, &about), EINVAL);
    CHECK_FAILS("gone by key", shmget(key, SIZE, 0), ENOENT);
}

static void attachments(void) {
    int id = shmget(IPC_PRIVATE, SIZE, 0600);
    MUST(id >= 0);
    char *first = shmat(id, NULL, 0);
    char *second = shmat(id, NULL, SHM_RDONLY);
    MUST(first != (void *)-1 && second != (void *)-1 && first != second);
    CHECK("zero at first", first[0] == 0 && first[SIZE - 1] == 0);
    strcpy(first + 5000, "seen by both");
    CHECK("one memory", strcmp(second + 5000, "seen by both") == 0);
    CHECK_WITH("two attachments", attached(id) == 2, attached(id));
    CHECK_FAILS("read-only stays so", mprotect(second, 4096, PROT_READ | PROT_WRITE), EACCES);
    int gate[2];
    MUST(pipe(gate) == 0);
    pid_t child = fork();
    if (child == 0) {
        char go;
        strcpy(first, "from the child");
        _exit(read(gate[0], &go, 1) == 1 ? 0 : 1);
    }
    CHECK_WITH("a child inherits them", attached(id) == 4, attached(id));
    CHECK("it goes on", write(gate[1], "x", 1) == 1 && exits(child, 0));
    CHECK("what it wrote is here", strcmp(second, "from the child") == 0);
    CHECK_WITH("its end detaches", attached(id) == 2, attached(id));
    child = fork();
    if (child == 0) {
        execl("/bin/true", "true", NULL);
        _exit(9);
    }
    CHECK("a new program in a child", exits(child, 0) && attached(id) == 2);
    CHECK("detached", shmdt(second) == 0 && attached(id) == 1);
    CHECK_FAILS("not twice", shmdt(second), EINVAL);
    CHECK_FAILS("not in the middle", shmdt(first + 4096), EINVAL);
    CHECK_FAILS("not where something is", shmat(id, first, 0), EINVAL);
    CHECK("in its place", shmat(id, first, SHM_REMAP) == first && attached(id) == 1);
    CHECK("a part unmapped", munmap(first, 4096) == 0 && attached(id) == 1);
    CHECK("removed while attached", shmctl(id, IPC_RMID, NULL) == 0 && attached(id) == 1);
    struct shmid_ds about;
    CHECK("it says so", shmctl(id, IPC_STAT, &about) == 0 && about.shm_perm.mode == (0600 | SHM_DEST));
    CHECK("still memory", strcmp(first + 5000, "seen by both") == 0);
    CHECK("attached once more by its number", (second = shmat(id, NULL, 0)) != (void *)-1);
    CHECK("the same", strcmp(second + 5000, "seen by both") == 0);
    CHECK("the last but one", shmdt(second) == 0 && attached(id) == 1);
    CHECK("the last", munmap(first + 4096, 8192) == 0);
    CHECK_FAILS("gone", shmctl(id, IPC_STAT, &about), EINVAL);
}

int main(void) {
    keys();
    attachments();
    return check_result();
}
