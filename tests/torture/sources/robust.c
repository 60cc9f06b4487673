/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Robust mutexes whose owners die, between threads and between processes, and a SIGSEGV handler that works all the time:
   each round it must be there still, on its own stack, and mend the access that faulted. */
#include "common.h"

struct shared {
  pthread_mutex_t mutex;
  unsigned long counter, mirror;
};
static struct shared *between;
static struct shared inside;
static char *guarded;
static volatile unsigned long faults;

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)context;
  if (number != SIGSEGV || (char *)info->si_addr < guarded || (char *)info->si_addr >= guarded + PAGE) {
    bad("SIGSEGV at another address", (uintptr_t)info->si_addr, (uintptr_t)guarded);
  }
  if (mprotect(guarded, PAGE, RW)) bad("mprotect", errno, 0);
  faults++;
}

static void make(struct shared *place, int kind) {
  pthread_mutexattr_t how;
  pthread_mutexattr_init(&how);
  pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
  pthread_mutexattr_setpshared(&how, kind);
  if (pthread_mutex_init(&place->mutex, &how)) bad("pthread_mutex_init", 0, 0);
}

/* Lock it; whether its last owner has died. */
static int lock(struct shared *place) {
  int result = pthread_mutex_lock(&place->mutex);
  if (result == EOWNERDEAD) pthread_mutex_consistent(&place->mutex);
  else if (result) bad("pthread_mutex_lock", result, 0);
  if (place->counter != place->mirror) bad("what the mutex protects differs", place->counter, place->mirror);
  return result == EOWNERDEAD;
}

static void *dies(void *place) {
  lock(place);
  nap(500);
  return 0;
}

static void *contends(void *place) {
  for (;;) {
    struct shared *it = place;
    lock(it);
    it->counter++;
    if (it->counter % 64 == 0) nap(100);
    it->mirror++;
    pthread_mutex_unlock(&it->mutex);
  }
}

int main(void) {
  between = mmap(0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  guarded = mmap(0, PAGE, RW, ANON, -1, 0);
  make(between, PTHREAD_PROCESS_SHARED);
  make(&inside, PTHREAD_PROCESS_PRIVATE);
  stack_t stack = {.ss_sp = malloc(256 << 10), .ss_size = 256 << 10};
  sigaltstack(&stack, 0);
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigaction(SIGSEGV, &action, 0);
  pthread_t thread;
  static struct shared busy;
  make(&busy, PTHREAD_PROCESS_PRIVATE);
  pthread_create(&thread, 0, contends, &busy);
  pthread_create(&thread, 0, contends, &busy);
  uint64_t *data = fragments(60, 3, 5);
  for (unsigned long round = 1;; round++) {
    if (pthread_create(&thread, 0, dies, &inside)) bad("pthread_create", errno, 0);
    pthread_join(thread, 0);
    if (!lock(&inside)) bad("a thread died with the mutex and nobody said so", round, 0);
    pthread_mutex_unlock(&inside.mutex);
    pid_t child = fork();
    if (child < 0) bad("fork", errno, 0);
    if (!child) {
      lock(between);
      check_fragments(data, 60, 3, 5);
      _exit(7);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7) bad("child", status, 0);
    if (!lock(between)) bad("a process died with the mutex and nobody said so", round, 0);
    pthread_mutex_unlock(&between->mutex);
    if (mprotect(guarded, PAGE, PROT_NONE)) bad("mprotect", errno, 1);
    *(volatile char *)guarded = 1;
    if (faults != round) bad("the handler of SIGSEGV was not called", faults, round);
    check_fragments(data, 60, 3, 5);
    /* Written, all pages are its own again, which a weld wants; and every so often there are new seams. */
    for (size_t w = 0; w < 180 * PAGE / 8; w++) *(volatile uint64_t *)&data[w] = data[w];
    if (round % 50 == 0) {
      munmap(data, 180 * PAGE);
      data = fragments(60, 3, 5);
    }
    nap(20000);
    beat(round);
  }
}
