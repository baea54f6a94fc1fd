// Waits once in the call that is named, for WAIT_MS, and says how the wait ended: "primary" or "copy", result,
// errno, milliseconds. Prints "ready" before.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int ms;
static int quiet[2];
static struct timespec left;
static struct timeval left_us;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void nothing(int signal) { (void)signal; }

static int a_socket(int listening) {
    int s = socket(AF_INET, listening ? SOCK_STREAM : SOCK_DGRAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(s, (void *)&a, sizeof a) || (listening && listen(s, 8))) _exit(4);
    if (setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &left_us, sizeof left_us)) _exit(4);
    return s;
}

// poll with known values in registers that a call leaves alone: 0 if they are as they were.
static int with_registers(void) {
    uint64_t in[6] = {0x1111222233334444, 0x5555, 0x6666777788889999, 0xaaaa, 0xbbbb, 0xcccc}, out[6] = {0};
    uint32_t mxcsr = 0x7f80, mxcsr_after = 0;
    long result;
    register long r10 asm("r10") = 0x1010;
    register uint64_t r12 asm("r12") = 0x1212, r13 asm("r13") = (uint64_t)in, r14 asm("r14") = (uint64_t)out;
    register uint64_t r8 asm("r8") = 0x88, r9 asm("r9") = 0x99, r15 asm("r15") = 0xf00d;
    asm volatile("movdqu (%%r13), %%xmm0\n movdqu 16(%%r13), %%xmm7\n movdqu 32(%%r13), %%xmm15\n"
                 "ldmxcsr %[mxcsr]\n syscall\n stmxcsr %[after]\n"
                 "movdqu %%xmm0, (%%r14)\n movdqu %%xmm7, 16(%%r14)\n movdqu %%xmm15, 32(%%r14)\n"
                 : "=a"(result), [after] "=m"(mxcsr_after), "+r"(r10), "+r"(r12), "+r"(r8), "+r"(r9), "+r"(r15)
                 : "a"(SYS_poll), "D"(0), "S"(0), "d"(ms), [mxcsr] "m"(mxcsr), "r"(r13), "r"(r14)
                 : "rcx", "r11", "memory", "xmm0", "xmm7", "xmm15");
    int same = r10 == 0x1010 && r12 == 0x1212 && r8 == 0x88 && r9 == 0x99 && r15 == 0xf00d;
    same = same && mxcsr_after == mxcsr && !memcmp(in, out, sizeof in);
    return result ? (int)result : same ? 0 : -1000;
}

static int own_mutex(void) { // a mutex with priority inheritance knows its owner by the kernel's thread id
    static pthread_mutex_t m;
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&m, &a);
    nanosleep(&left, 0);
    if (pthread_mutex_lock(&m)) return -1;
    return (m.__data.__owner & FUTEX_TID_MASK) == gettid() ? 0 : -2;
}

static int wait_once(const char *name) {
    sigset_t usr1, none;
    sigemptyset(&usr1);
    sigemptyset(&none);
    sigaddset(&usr1, SIGUSR1);
    struct pollfd p = {quiet[0], POLLIN, 0};
    int e = epoll_create1(0), word = 0;
    struct epoll_event ev = {EPOLLIN, {0}};
    epoll_ctl(e, EPOLL_CTL_ADD, quiet[0], &ev);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(quiet[0], &set);
    char byte;
    if (!strcmp(name, "poll")) return poll(&p, 1, ms);
    if (!strcmp(name, "epoll_wait")) return epoll_wait(e, &ev, 1, ms);
    if (!strcmp(name, "epoll_pwait")) return epoll_pwait(e, &ev, 1, ms, &usr1);
    if (!strcmp(name, "select")) return select(quiet[0] + 1, &set, 0, 0, &left_us);
    if (!strcmp(name, "pselect")) return pselect(quiet[0] + 1, &set, 0, 0, &left, &none);
    if (!strcmp(name, "nanosleep")) return nanosleep(&left, 0);
    if (!strcmp(name, "futex")) return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &left, 0, 0);
    if (!strcmp(name, "accept")) return accept(a_socket(1), 0, 0);
    if (!strcmp(name, "recv")) return recv(a_socket(0), &byte, 1, 0);
    if (!strcmp(name, "read")) return read(a_socket(0), &byte, 1);
    if (!strcmp(name, "sigtimedwait")) return sigtimedwait(&usr1, 0, &left);
    if (!strcmp(name, "registers")) return with_registers();
    if (!strcmp(name, "mutex")) return own_mutex();
    if (!strcmp(name, "ppoll")) { // the mask outside of the call must survive
        sigprocmask(SIG_BLOCK, &usr1, 0);
        int result = ppoll(&p, 1, &left, &none);
        sigprocmask(SIG_BLOCK, 0, &none);
        return sigismember(&none, SIGUSR1) ? result : -1000;
    }
    if (!strcmp(name, "clock_nanosleep")) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += left.tv_sec;
        until.tv_nsec += left.tv_nsec;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
    }
    if (!strcmp(name, "signal")) { // a handler without SA_RESTART: the wait ends with EINTR
        struct sigaction action = {.sa_handler = nothing};
        sigaction(SIGUSR1, &action, 0);
        return epoll_wait(e, &ev, 1, ms);
    }
    _exit(5);
}

int main(int argc, char **argv) {
    ms = atoi(argv[2]);
    left = (struct timespec){ms / 1000, ms % 1000 * 1000000L};
    left_us = (struct timeval){ms / 1000, ms % 1000 * 1000L};
    pid_t primary = getpid();
    if (pipe(quiet)) return 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    double start = now();
    errno = 0;
    int result = wait_once(argv[1]);
    int error = errno;
    printf("%s %d %d %.0f\n", getpid() == primary ? "primary" : "copy", result, result < 0 ? error : 0, now() - start);
    return argc - 3;
}
