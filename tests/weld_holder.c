/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process to be welded that needs no library to speak of: fragments side by side, checked again and again.
 *
 * Its threads hold robust mutexes in the fragments' memory meanwhile. "ready ADDRESS LENGTH" on stdout when it has
 * begun; for each line on stdin "fine ROUNDS", for "core" a core dump. Status 3 at the first byte that is not as it was.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define COUNT 40
#define SIZE (3 * 4096ul)

static unsigned char *area;
static volatile unsigned long rounds;

static void *hold(void *mutex)
{
	pthread_mutex_lock(mutex);
	if (*(volatile int *)((char *)mutex + 256))
		return NULL; /* ends while it holds the mutex: the next owner is told so */
	for (;;) {
		pthread_mutex_unlock(mutex);
		usleep(200);
		if (pthread_mutex_lock(mutex) == EOWNERDEAD)
			pthread_mutex_consistent(mutex);
	}
}

static void *check(void *unused)
{
	(void)unused;
	for (;; rounds++)
		for (int index = 0; index < COUNT; index++)
			for (unsigned long at = 1024; at < SIZE; at += 509) {
				unsigned char *byte = area + index * SIZE + at;
				if (*byte != (unsigned char)(index * 31 + at))
					_exit(3);
				*(volatile unsigned char *)byte = *byte;
			}
	return NULL;
}

int main(void)
{
	char line[64];
	pthread_mutexattr_t robust;
	pthread_t threads[5];
	unsigned char *room = mmap(NULL, COUNT * SIZE + (4 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	area = (unsigned char *)(((unsigned long)room + (2 << 20)) & -(2ul << 20));
	for (int index = 0; index < COUNT; index++) {
		unsigned char *piece = mmap(NULL, SIZE + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		piece = mmap(piece + 4096, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		for (unsigned long at = 1024; at < SIZE; at++)
			piece[at] = (unsigned char)(index * 31 + at);
		mremap(piece, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, area + index * SIZE);
	}
	signal(SIGUSR1, SIG_IGN); /* brings in the code that returns from handlers, which a weld borrows */
	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init((pthread_mutex_t *)(area + 38 * SIZE), &robust);
	for (int index = 0; index < 5; index++) {
		pthread_mutex_t *mutex = (pthread_mutex_t *)(area + index * 7 * SIZE);
		pthread_mutex_init(mutex, &robust);
		pthread_create(&threads[index], NULL, index ? hold : check, mutex);
	}
	printf("ready %lx %lx\n", (unsigned long)area, COUNT * SIZE);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "core", 4))
			raise(SIGSEGV);
		if (!strncmp(line, "robust", 6)) { /* a thread ends with its mutex: who takes it next learns of it */
			pthread_mutex_t *mutex = (pthread_mutex_t *)(area + 38 * SIZE);
			*(volatile int *)((char *)mutex + 256) = 1;
			pthread_t more;
			pthread_create(&more, NULL, hold, mutex);
			pthread_join(more, NULL);
			int status = pthread_mutex_lock(mutex);
			printf("%s\n", status == EOWNERDEAD ? "owner died" : "lost");
			pthread_mutex_consistent(mutex);
			*(volatile int *)((char *)mutex + 256) = 0;
			pthread_mutex_unlock(mutex);
		} else {
			printf("fine %lu\n", rounds);
		}
		fflush(stdout);
	}
	return 0;
}
