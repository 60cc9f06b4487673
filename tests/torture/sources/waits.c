/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Threads in system calls that wait. The program has no signal handler, so no call may answer EINTR, none may end before
   its time; epoll_wait alone may answer EINTR, which it does whenever a tracer dies (signal(7)). */
#include "common.h"
#include <sys/epoll.h>
#include <sys/socket.h>

static unsigned long passed;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void *writes(void *fd) {
  unsigned char block[70000];
  for (unsigned char value = 0;; value++) {
    memset(block, value, sizeof block);
    for (size_t done = 0; done < sizeof block;) {
      ssize_t n = write((int)(uintptr_t)fd, block + done, sizeof block - done);
      if (n < 0) bad("write", errno, done);
      done += n;
    }
    nap(2000);
  }
}

static void *reads(void *fd) {
  unsigned char block[70000];
  for (unsigned char value = 0;; value++) {
    for (size_t done = 0; done < sizeof block;) {
      ssize_t n = read((int)(uintptr_t)fd, block + done, sizeof block - done);
      if (n <= 0) bad("read", errno, done);
      done += n;
    }
    for (size_t k = 0; k < sizeof block; k++)
      if (block[k] != value) bad("what came through differs", k, block[k]);
    __atomic_add_fetch(&passed, 1, __ATOMIC_RELAXED);
  }
}

static void *polls(void *unused) {
  int poll = epoll_create1(0), ends[2];
  if (pipe(ends)) bad("pipe", errno, 0);
  struct epoll_event event = {.events = EPOLLIN};
  epoll_ctl(poll, EPOLL_CTL_ADD, ends[0], &event);
  for (;;) {
    double began = now();
    int n = epoll_wait(poll, &event, 1, 300);
    if (n > 0 || (n < 0 && errno != EINTR)) bad("epoll_wait", n, errno);
    if (!n && now() - began < 0.299) bad("epoll_wait ended early, us", (now() - began) * 1e6, 0);
  }
  return unused;
}

int main(void) {
  int pipes[2], sockets[2];
  pthread_t thread;
  if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) bad("pipe", errno, 0);
  pthread_create(&thread, 0, writes, (void *)(uintptr_t)pipes[1]);
  pthread_create(&thread, 0, reads, (void *)(uintptr_t)pipes[0]);
  pthread_create(&thread, 0, writes, (void *)(uintptr_t)sockets[1]);
  pthread_create(&thread, 0, reads, (void *)(uintptr_t)sockets[0]);
  pthread_create(&thread, 0, polls, 0);
  uint64_t *data = fragments(80, 3, 3);
  for (unsigned long shown = 0;;) {
    nap(50000);
    check_fragments(data, 80, 3, 3);
    unsigned long seen = __atomic_load_n(&passed, __ATOMIC_RELAXED);
    if (seen > shown) beat(shown = seen);
  }
}
