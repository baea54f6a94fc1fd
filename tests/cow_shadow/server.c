// A server with keep-alive connections: every line is answered with the id of the process and the sum of its
// table. Any error of a wait ends it with status 3: an interruption must not show.
// server MODE TABLE_MB, MODE: accept, poll, select, epoll, edge (epoll, edge-triggered). Prints its port.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LONG_MS = 3600 * 1000, SOCKETS = 64 };
static unsigned char *table;
static size_t table_len;

static void die(const char *what) {
    fprintf(stderr, "%d: %s: %s\n", getpid(), what, strerror(errno));
    _exit(3);
}

static double us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

// Answers what is there; 0 at the end of the connection.
static int answer(int fd) {
    char line[256], reply[256];
    ssize_t n = recv(fd, line, sizeof line - 1, 0);
    if (n < 0) {
        if (errno == EAGAIN || errno == ECONNRESET) return errno == EAGAIN;
        die("recv");
    }
    if (n == 0) return 0;
    line[n] = 0;
    if (!strncmp(line, "fork", 4)) { // how long a plain fork takes
        double start = us();
        pid_t child = fork();
        if (!child) _exit(0);
        double took = us() - start;
        waitpid(child, 0, 0);
        snprintf(reply, sizeof reply, "%.0f\n", took);
    } else {
        unsigned long sum = 0;
        for (size_t i = 0; i < table_len; i += 4096) sum += table[i];
        snprintf(reply, sizeof reply, "%d %lu\n", getpid(), sum);
    }
    send(fd, reply, strlen(reply), MSG_NOSIGNAL);
    return 1;
}

static int listen_somewhere(int flags) {
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (bind(s, (void *)&a, len) || listen(s, 128) || getsockname(s, (void *)&a, &len)) die("listen");
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    return s;
}

static int take(int s, int flags) {
    int c = accept4(s, 0, 0, flags | SOCK_CLOEXEC);
    if (c < 0 && errno != EAGAIN) die("accept");
    return c;
}

static void serve_one_by_one(void) {
    for (int s = listen_somewhere(0);;) {
        int c = take(s, 0);
        while (answer(c)) {}
        close(c);
    }
}

static void serve_poll(int use_select) {
    struct pollfd p[SOCKETS] = {{listen_somewhere(SOCK_NONBLOCK), POLLIN, 0}};
    for (int n = 1;;) {
        if (use_select) {
            fd_set set;
            FD_ZERO(&set);
            for (int i = 0; i < n; i++) FD_SET(p[i].fd, &set);
            struct timeval t = {LONG_MS / 1000, 0};
            if (select(FD_SETSIZE, &set, 0, 0, &t) < 0) die("select");
            for (int i = 0; i < n; i++) p[i].revents = FD_ISSET(p[i].fd, &set) ? POLLIN : 0;
        } else if (poll(p, n, LONG_MS) < 0) die("poll");
        for (int i = n - 1; i > 0; i--)
            if (p[i].revents && !answer(p[i].fd)) {
                close(p[i].fd);
                p[i] = p[--n];
            }
        int c = p[0].revents && n < SOCKETS ? take(p[0].fd, SOCK_NONBLOCK) : -1;
        if (c >= 0) p[n++] = (struct pollfd){c, POLLIN, 0};
    }
}

// With a timer and a counter in the same instance, as event loops have them.
static void serve_epoll(unsigned edge) {
    int s = listen_somewhere(SOCK_NONBLOCK), e = epoll_create1(EPOLL_CLOEXEC);
    int counter = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec every = {{0, 50000000}, {0, 50000000}};
    timerfd_settime(timer, 0, &every, 0);
    int all[] = {s, counter, timer};
    for (int i = 0; i < 3; i++) {
        struct epoll_event ev = {EPOLLIN | (all[i] == s ? edge : 0), {.fd = all[i]}};
        if (epoll_ctl(e, EPOLL_CTL_ADD, all[i], &ev)) die("epoll_ctl");
    }
    for (unsigned long woken = 0, ticks = 0;;) {
        struct epoll_event got[8];
        int n = epoll_wait(e, got, 8, LONG_MS);
        if (n < 0) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd, c;
            unsigned long value = 0;
            if (fd == timer) {
                // Each tick goes through the counter: it is lost or doubled if that is shared with another.
                if (read(timer, &value, 8) == 8 && write(counter, &value, 8) == 8) ticks += value;
            } else if (fd == counter) {
                if (read(counter, &value, 8) == 8) woken += value;
                if (woken > ticks) errno = 0, die("counter");
            } else if (fd == s) {
                while ((c = take(s, SOCK_NONBLOCK)) >= 0) {
                    struct epoll_event ev = {EPOLLIN, {.fd = c}};
                    if (epoll_ctl(e, EPOLL_CTL_ADD, c, &ev)) die("epoll_ctl");
                }
            } else if (!answer(fd)) close(fd);
        }
    }
}

int main(int argc, char **argv) {
    table_len = (size_t)atoi(argv[2]) << 20;
    table = malloc(table_len + 1);
    memset(table, 1, table_len + 1);
    if (!strcmp(argv[1], "accept")) serve_one_by_one();
    else if (!strcmp(argv[1], "epoll")) serve_epoll(0);
    else if (!strcmp(argv[1], "edge")) serve_epoll(EPOLLET);
    else serve_poll(!strcmp(argv[1], "select"));
    return argc;
}
