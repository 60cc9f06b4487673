/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Every blocking call that can be made here, each in a thread of its own, again and again. A call that ends is told
 * with its result and the milliseconds that it took, one a line: "epoll_wait 0 301". Arguments: the milliseconds of a
 * time limit, then "limited" (calls that end at it), "endless" (calls that nothing ends) or "ignored" (many threads in
 * calls that a signal in vain would end). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int limit_ms;
static struct timespec limit_ts;
static __thread char buffer[1 << 20];

struct wait {
  const char *name;
  long (*make)(void);       /* makes what is waited for; its result is given to `call` */
  long (*call)(long);       /* waits; returns as the C library does */
};

static long must(long result, const char *what) {
  if (result < 0) { printf("cannot %s: %s\n", what, strerror(errno)); fflush(stdout); _exit(5); }
  return result;
}
static long none(void) { return 0; }

/* What is waited for */
static int limited_socket;  /* whether sockets get a time limit */
static void limit_socket(int fd) {
  struct timeval time = {limit_ms / 1000, limit_ms % 1000 * 1000};
  if (!limited_socket) return;
  must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time), "set SO_RCVTIMEO");
  must(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time), "set SO_SNDTIMEO");
}
static long empty_socket(void) {
  int ends[2];
  must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "make a socket pair");
  limit_socket(ends[0]);
  return ends[0];
}
static long full_socket(void) {
  int fd = empty_socket();
  while (send(fd, buffer, 4096, MSG_DONTWAIT) > 0) {}
  return fd;
}
static long tcp(int backlog) {
  int fd = must(socket(AF_INET, SOCK_STREAM, 0), "make a socket");
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  must(bind(fd, (void *)&address, sizeof address), "bind");
  must(listen(fd, backlog), "listen");
  limit_socket(fd);
  return fd;
}
static long quiet_listener(void) { return tcp(8); }
static long full_tcp(void) {
  int listener = tcp(0);
  struct sockaddr_in address;
  socklen_t size = sizeof address;
  getsockname(listener, (void *)&address, &size);
  for (int i = 0; i < 3; i++) {
    int fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "make a socket");
    connect(fd, (void *)&address, sizeof address);
  }
  usleep(20000);
  return listener;
}
static long full_unix(void) {
  int fd = must(socket(AF_UNIX, SOCK_STREAM, 0), "make a socket");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  must(bind(fd, (void *)&address, sizeof(sa_family_t)), "bind");
  must(listen(fd, 0), "listen");
  socklen_t size = sizeof address;
  getsockname(fd, (void *)&address, &size);
  int other = must(socket(AF_UNIX, SOCK_STREAM, 0), "make a socket");
  must(connect(other, (void *)&address, size), "connect");
  return fd;
}
static long empty_pipe(void) { int ends[2]; must(pipe(ends), "make a pipe"); return ends[0]; }
static long full_pipe(void) {
  int ends[2];
  must(pipe(ends), "make a pipe");
  fcntl(ends[1], F_SETFL, O_NONBLOCK);
  while (write(ends[1], buffer, 4096) > 0) {}
  fcntl(ends[1], F_SETFL, 0);
  return ends[1];
}
static long poll_set(void) {
  int set = must(epoll_create1(0), "make an epoll");
  struct epoll_event event = {.events = EPOLLIN};
  must(epoll_ctl(set, EPOLL_CTL_ADD, empty_pipe(), &event), "add to it");
  return set;
}
static long semaphore(void) { return must(semget(IPC_PRIVATE, 1, 0600), "make a semaphore"); }
static long queue(void) { return must(msgget(IPC_PRIVATE, 0600), "make a message queue"); }
static long contexts(void) { aio_context_t context = 0; must(syscall(SYS_io_setup, 8, &context), "io_setup"); return context; }
static long ring(void) { struct io_uring_params p = {0}; return must(syscall(SYS_io_uring_setup, 4, &p), "io_uring_setup"); }
static long watch(void) { return must(inotify_init(), "make an inotify"); }
static long events(void) { return must(eventfd(0, 0), "make an eventfd"); }
static long timer(void) { return must(timerfd_create(CLOCK_MONOTONIC, 0), "make a timerfd"); }
static long signals(void) { sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); return must(signalfd(-1, &set, 0), "make a signalfd"); }
static long fifo(void) { return must(mkfifo("fifo", 0600), "make a fifo"); }
static long locked(void) {
  int fd = must(memfd_create("lock", 0), "make a file");
  char name[64];
  sprintf(name, "/proc/self/fd/%d", fd);
  int other = must(open(name, O_RDWR), "open it again");
  must(flock(fd, LOCK_EX), "lock it");
  struct flock lock = {.l_type = F_WRLCK};
  must(fcntl(fd, F_OFD_SETLKW, &lock), "lock it");
  return other;
}
static long terminal(void) {
  int fd = must(open("/dev/ptmx", O_RDWR | O_NOCTTY), "open a terminal");
  grantpt(fd); unlockpt(fd);
  return must(open(ptsname(fd), O_RDWR | O_NOCTTY), "open its other end");
}
static long child(void) { int pid = fork(); if (!pid) for (;;) pause(); return pid; }

/* Waits */
static int ms(void) { return limited_socket ? limit_ms : -1; }
static struct timespec *ts(void) { return limited_socket ? &limit_ts : NULL; }
static sigset_t *usr2(void) { static __thread sigset_t set; sigemptyset(&set); sigaddset(&set, SIGUSR2); return &set; }
static struct iovec *vector(void) { static __thread struct iovec v; v.iov_base = buffer; v.iov_len = 4096; return &v; }
static struct msghdr *message(void) { static __thread struct msghdr m; m.msg_iov = vector(); m.msg_iovlen = 1; return &m; }

static long w_epoll_wait(long fd) { struct epoll_event e[4]; return epoll_wait(fd, e, 4, ms()); }
static long w_epoll_pwait(long fd) { struct epoll_event e[4]; sigset_t none; sigfillset(&none); return epoll_pwait(fd, e, 4, ms(), &none); }
static long w_epoll_pwait2(long fd) { struct epoll_event e[4]; return syscall(SYS_epoll_pwait2, fd, e, 4, ts(), NULL, 8); }
static long w_sigtimedwait(long x) { (void)x; return syscall(SYS_rt_sigtimedwait, usr2(), NULL, ts(), 8); }
static long w_semtimedop(long id) { struct sembuf b = {0, -1, 0}; return syscall(SYS_semtimedop, id, &b, 1, ts()); }
static long w_semop(long id) { struct sembuf b = {0, -1, 0}; return syscall(SYS_semop, id, &b, 1); }
static long w_io_getevents(long c) { struct io_event e; return syscall(SYS_io_getevents, c, 1, 1, &e, ts()); }
static long w_io_pgetevents(long c) { struct io_event e; return syscall(SYS_io_pgetevents, c, 1, 1, &e, ts(), NULL); }
static long w_io_uring(long fd) {
  struct __kernel_timespec time = {limit_ts.tv_sec, limit_ts.tv_nsec};
  struct io_uring_getevents_arg arg = {.ts = limited_socket ? (unsigned long)&time : 0};
  return syscall(SYS_io_uring_enter, fd, 0, 1, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
}
static long w_read(long fd) { return read(fd, buffer, 4096); }
static long w_readv(long fd) { return readv(fd, vector(), 1); }
static long w_preadv2(long fd) { return preadv2(fd, vector(), 1, -1, 0); }
static long w_recvfrom(long fd) { return recv(fd, buffer, 4096, 0); }
static long w_recvmsg(long fd) { return recvmsg(fd, message(), 0); }
static long w_recvmmsg(long fd) { struct mmsghdr m = {.msg_hdr = *message()}; return recvmmsg(fd, &m, 1, 0, NULL); }
static long w_waitall(long fd) { return recv(fd, buffer, 4096, MSG_WAITALL); }
static long w_accept(long fd) { return syscall(SYS_accept, fd, NULL, NULL); }
static long w_accept4(long fd) { return accept4(fd, NULL, NULL, 0); }
static long w_splice(long fd) { static __thread int out[2]; if (!out[1]) must(pipe(out), "make a pipe"); return splice(fd, NULL, out[1], NULL, 4096, 0); }
static long w_tee(long fd) { static __thread int out[2]; if (!out[1]) must(pipe(out), "make a pipe"); return tee(fd, out[1], 4096, 0); }
static long w_vmsplice(long fd) { return vmsplice(fd, vector(), 1, 0); }
static long w_write(long fd) { return write(fd, buffer, 4096); }
static long w_writev(long fd) { return writev(fd, vector(), 1); }
static long w_pwritev2(long fd) { return pwritev2(fd, vector(), 1, -1, 0); }
static long w_sendto(long fd) { return send(fd, buffer, 4096, 0); }
static long w_sendmsg(long fd) { return sendmsg(fd, message(), 0); }
static long w_sendmmsg(long fd) { struct mmsghdr m = {.msg_hdr = *message()}; return sendmmsg(fd, &m, 1, 0); }
static long w_sendfile(long fd) {
  static __thread int in;
  if (!in) { in = memfd_create("in", 0); must(ftruncate(in, 8192), "lengthen a file"); }
  off_t at = 0;
  return sendfile(fd, in, &at, 4096);
}
static long w_connect(long listener) {
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  getsockname(listener, (void *)&address, &size);
  int fd = must(socket(address.ss_family, SOCK_STREAM, 0), "make a socket");
  limit_socket(fd);
  long result = connect(fd, (void *)&address, size);
  int error = errno;
  close(fd);
  errno = error;
  return result;
}
static long w_poll(long fd) { struct pollfd p = {.fd = fd, .events = POLLIN}; return poll(&p, 1, ms()); }
static const struct timespec hour = {3600, 0};
static long w_ppoll(long fd) { struct pollfd p = {.fd = fd, .events = POLLIN}; struct timespec t = limit_ts; return syscall(SYS_ppoll, &p, 1, &t, NULL, 8); }
static long w_ppoll_ro(long fd) { struct pollfd p = {.fd = fd, .events = POLLIN}; return syscall(SYS_ppoll, &p, 1, &hour, NULL, 8); }
static long w_select(long fd) { fd_set set; FD_ZERO(&set); FD_SET(fd, &set); struct timeval t = {limit_ms / 1000, limit_ms % 1000 * 1000}; return select(fd + 1, &set, NULL, NULL, limited_socket ? &t : NULL); }
static long w_pause(long x) { (void)x; return pause(); }
static long w_sigsuspend(long x) { (void)x; sigset_t all; sigfillset(&all); return sigsuspend(&all); }
static long w_msgrcv(long id) { return msgrcv(id, buffer, 64, 0, 0); }
static long w_futex(long x) { (void)x; int word = 0; return syscall(SYS_futex, &word, FUTEX_WAIT, 0, ts(), NULL, 0); }
static long w_nanosleep(long x) { (void)x; struct timespec t = limited_socket ? limit_ts : hour; return syscall(SYS_nanosleep, &t, NULL); }
static long w_waitid(long pid) { siginfo_t info; return waitid(P_PID, pid, &info, WEXITED); }
static long w_flock(long fd) { return flock(fd, LOCK_EX); }
static long w_setlkw(long fd) { struct flock lock = {.l_type = F_WRLCK}; return fcntl(fd, F_OFD_SETLKW, &lock); }
static long w_open(long x) { (void)x; return open("fifo", O_RDONLY); }

static const struct wait limited[] = {
  {"epoll_wait", poll_set, w_epoll_wait}, {"epoll_pwait", poll_set, w_epoll_pwait},
  {"epoll_pwait2", poll_set, w_epoll_pwait2}, {"rt_sigtimedwait", none, w_sigtimedwait},
  {"semtimedop", semaphore, w_semtimedop}, {"io_getevents", contexts, w_io_getevents},
  {"io_pgetevents", contexts, w_io_pgetevents}, {"io_uring_enter", ring, w_io_uring},
  {"read", empty_socket, w_read}, {"readv", empty_socket, w_readv}, {"preadv2", empty_socket, w_preadv2},
  {"recvfrom", empty_socket, w_recvfrom}, {"recvmsg", empty_socket, w_recvmsg}, {"recvmmsg", empty_socket, w_recvmmsg},
  {"waitall", empty_socket, w_waitall}, {"accept", quiet_listener, w_accept}, {"accept4", quiet_listener, w_accept4},
  {"splice", empty_socket, w_splice}, {"write", full_socket, w_write}, {"writev", full_socket, w_writev},
  {"pwritev2", full_socket, w_pwritev2}, {"sendto", full_socket, w_sendto}, {"sendmsg", full_socket, w_sendmsg},
  {"sendmmsg", full_socket, w_sendmmsg}, {"sendfile", full_socket, w_sendfile}, {"connect", full_tcp, w_connect},
  {"connect-unix", full_unix, w_connect}, {"poll", empty_pipe, w_poll}, {"ppoll", empty_pipe, w_ppoll},
  {"select", empty_pipe, w_select}, {"futex", none, w_futex}, {"nanosleep", none, w_nanosleep}, {0}};

static const struct wait endless[] = {
  {"epoll_wait", poll_set, w_epoll_wait}, {"epoll_pwait", poll_set, w_epoll_pwait},
  {"epoll_pwait2", poll_set, w_epoll_pwait2}, {"rt_sigtimedwait", none, w_sigtimedwait},
  {"semop", semaphore, w_semop}, {"semtimedop", semaphore, w_semtimedop}, {"io_getevents", contexts, w_io_getevents},
  {"io_pgetevents", contexts, w_io_pgetevents}, {"io_uring_enter", ring, w_io_uring},
  {"read socket", empty_socket, w_read}, {"read pipe", empty_pipe, w_read}, {"readv pipe", empty_pipe, w_readv},
  {"read inotify", watch, w_read}, {"read eventfd", events, w_read}, {"read timerfd", timer, w_read},
  {"read signalfd", signals, w_read}, {"read terminal", terminal, w_read}, {"recvfrom", empty_socket, w_recvfrom},
  {"recvmsg", empty_socket, w_recvmsg}, {"waitall", empty_socket, w_waitall}, {"accept", quiet_listener, w_accept},
  {"splice pipe", empty_pipe, w_splice}, {"splice socket", empty_socket, w_splice}, {"tee", empty_pipe, w_tee},
  {"vmsplice", full_pipe, w_vmsplice}, {"write pipe", full_pipe, w_write}, {"writev pipe", full_pipe, w_writev},
  {"write socket", full_socket, w_write}, {"sendto", full_socket, w_sendto}, {"sendmsg", full_socket, w_sendmsg},
  {"sendfile", full_pipe, w_sendfile}, {"connect-unix", full_unix, w_connect}, {"poll", empty_pipe, w_poll},
  {"ppoll", empty_pipe, w_ppoll_ro}, {"select", empty_pipe, w_select}, {"pause", none, w_pause},
  {"sigsuspend", none, w_sigsuspend}, {"msgrcv", queue, w_msgrcv}, {"futex", none, w_futex},
  {"nanosleep", none, w_nanosleep}, {"waitid", child, w_waitid}, {"flock", locked, w_flock},
  {"fcntl", locked, w_setlkw}, {"open", fifo, w_open}, {0}};

static const struct wait in_vain[] = {
  {"epoll_wait", poll_set, w_epoll_wait}, {"semop", semaphore, w_semop}, {"io_uring_enter", ring, w_io_uring}, {0}};

static void *run(void *argument) {
  const struct wait *wait = argument;
  long object = wait->make();
  for (;;) {
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    long result = wait->call(object);
    if (result < 0) result = -errno;
    clock_gettime(CLOCK_MONOTONIC, &after);
    long micros = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    printf("%s|%ld|%ld.%03ld\n", wait->name, result, micros / 1000, micros % 1000);
    fflush(stdout);
  }
  return NULL;
}

int main(int argc, char **argv) {
  (void)argc;
  limit_ms = atoi(argv[1]);
  limit_ts = (struct timespec){limit_ms / 1000, limit_ms % 1000 * 1000000};
  limited_socket = !strcmp(argv[2], "limited");
  const struct wait *waits = limited_socket ? limited : !strcmp(argv[2], "endless") ? endless : in_vain;
  sigprocmask(SIG_BLOCK, usr2(), NULL);
  for (int copies = argc > 3 ? atoi(argv[3]) : 1; copies; copies--)
    for (const struct wait *wait = waits; wait->name; wait++) {
      pthread_t thread;
      pthread_attr_t attributes;
      pthread_attr_init(&attributes);
      pthread_attr_setstacksize(&attributes, 2 << 20);
      must(-pthread_create(&thread, &attributes, run, (void *)wait), "start a thread");
    }
  usleep(200000);
  puts("ready|0|0");
  fflush(stdout);
  char line[8];
  while (read(0, line, 1) > 0) {}
  kill(0, SIGTERM);
  _exit(0);
}
