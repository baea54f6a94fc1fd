// Does the one thing that is named, prints the process to copy, and waits. Exits with 77 where the machine can't.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *idle(void *unused) {
    for (;;) poll(0, 0, -1);
    return unused;
}

static void require(long result) {
    if (result < 0) {
        perror("refused");
        exit(77);
    }
}

static char *memory(int flags) {
    char *at = mmap(0, 65536, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    memset(at, 1, 65536);
    return at;
}

int main(int argc, char **argv) {
    const char *name = argv[1];
    pid_t target = getpid();
    pthread_t thread;
    if (!strcmp(name, "threads")) pthread_create(&thread, 0, idle, 0);
    else if (!strcmp(name, "io_uring")) {
        struct io_uring_params p = {0};
        require(syscall(SYS_io_uring_setup, 4, &p));
    } else if (!strcmp(name, "perf")) {
        struct perf_event_attr a = {.type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_DUMMY};
        require(syscall(SYS_perf_event_open, &a, 0, -1, -1, 0));
    } else if (!strcmp(name, "userfaultfd")) require(syscall(SYS_userfaultfd, O_CLOEXEC));
    else if (!strcmp(name, "device")) require(open("/dev/kmsg", O_RDONLY | O_NONBLOCK));
    else if (!strcmp(name, "shared")) memory(MAP_SHARED);
    else if (!strcmp(name, "dontfork")) require(madvise(memory(MAP_PRIVATE), 65536, MADV_DONTFORK));
    else if (!strcmp(name, "mlock")) require(mlock(memory(MAP_PRIVATE), 65536));
    else if (!strcmp(name, "lock")) {
        struct flock l = {.l_type = F_WRLCK};
        require(fcntl(open(argv[2], O_RDWR | O_CREAT, 0600), F_SETLK, &l));
    } else if (!strcmp(name, "flock")) require(flock(open(argv[2], O_RDWR | O_CREAT, 0600), LOCK_EX));
    else if (!strcmp(name, "itimer")) {
        struct itimerval t = {{0, 0}, {3600, 0}};
        require(setitimer(ITIMER_REAL, &t, 0));
    } else if (!strcmp(name, "timer")) {
        timer_t t;
        require(timer_create(CLOCK_MONOTONIC, 0, &t));
    } else if (!strcmp(name, "pending")) {
        sigset_t s;
        sigemptyset(&s);
        sigaddset(&s, SIGUSR1);
        sigprocmask(SIG_BLOCK, &s, 0);
        raise(SIGUSR1);
    } else if (!strcmp(name, "seccomp")) {
        struct sock_filter f = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
        struct sock_fprog program = {1, &f};
        require(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        require(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    } else if (!strcmp(name, "undumpable")) require(prctl(PR_SET_DUMPABLE, 0));
    else if (!strcmp(name, "children")) {
        if (!fork()) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            idle(0);
        }
    } else if (!strcmp(name, "traced") || !strcmp(name, "namespace")) {
        if (*name == 'n') require(syscall(SYS_unshare, 0x20000000 /* CLONE_NEWPID */));
        if (!(target = fork())) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            idle(0);
        }
        if (*name == 't') require(ptrace(PTRACE_SEIZE, target, 0, 0));
        usleep(100000); // until it waits
    }
    printf("%d\n", target);
    fflush(stdout);
    idle(0);
    return argc;
}
