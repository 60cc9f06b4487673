/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A process to be welded that gives its memory to another one, as vfork and posix_spawn do, but without waiting.
 *
 * "ready ADDRESS LENGTH" on stdout when its fragments are laid out. For the line "share" on stdin it starts a process
 * with the same memory, which writes to the fragments and maps and unmaps beside them: "sharing PID". For "end" it ends
 * that one: "ended STATUS", 0 if every byte was what had been written.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT 400
#define SIZE (2 * 4096ul)

static unsigned char *area;
static volatile int stop;
static char stack[1 << 16] __attribute__((aligned(16)));

static int use(void *unused)
{
	unsigned char mark = 0;

	(void)unused;
	while (!stop) {
		mark++;
		for (int index = 0; index < COUNT; index++)
			*(volatile unsigned char *)(area + index * SIZE + 8) = mark;
		munmap(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
		for (int index = 0; index < COUNT; index++)
			if (*(volatile unsigned char *)(area + index * SIZE + 8) != mark)
				_exit(3);
	}
	_exit(0);
}

int main(void)
{
	char line[64];
	int status;
	pid_t other = 0;
	unsigned char *room = mmap(NULL, COUNT * SIZE + (4 << 20), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	area = (unsigned char *)(((unsigned long)room + (2 << 20)) & -(2ul << 20));
	for (int index = 0; index < COUNT; index++) {
		unsigned char *piece = mmap(NULL, SIZE + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		piece = mmap(piece + 4096, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		memset(piece, index, SIZE);
		mremap(piece, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, area + index * SIZE);
	}
	printf("ready %lx %lx\n", (unsigned long)area, COUNT * SIZE);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "share", 5)) {
			stop = 0;
			other = clone(use, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
			printf("sharing %d\n", (int)other);
		} else {
			stop = 1;
			waitpid(other, &status, 0);
			printf("ended %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		}
		fflush(stdout);
	}
	return 0;
}
