/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The running kernel's side of a benchmark: performs a list of calls and tells how long they took.
 *
 * kernel_reference FILE: FILE holds the calls as benchmarks/workloads.py writes them. For every line read from stdin
 * a fresh child performs the set-up, then the measured calls, and one line is printed: nanoseconds for the measured
 * calls, and how many VMAs lie in the benchmark's part of the address space afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MMAP, MUNMAP, MPROTECT, MREMAP, MADVISE, READ, WRITE, FORK, EXIT };

struct call {
	uint64_t op, addr, length, prot, flags, new_addr, new_length;
};

struct header {
	uint64_t setup, measured, start, end; /* numbers of calls; the part of the address space they use */
};

static void die(const char *what)
{
	fprintf(stderr, "kernel_reference: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void expect(int good, const char *what)
{
	if (!good)
		die(what);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void perform(const struct call *call, const struct call *end)
{
	volatile unsigned char sink;

	for (; call < end; call++) {
		void *addr = (void *)call->addr;

		switch (call->op) {
		case MMAP:
			expect(mmap(addr, call->length, call->prot, call->flags, -1, 0) == addr, "mmap");
			break;
		case MUNMAP:
			expect(!munmap(addr, call->length), "munmap");
			break;
		case MPROTECT:
			expect(!mprotect(addr, call->length, call->prot), "mprotect");
			break;
		case MREMAP:
			expect(mremap(addr, call->length, call->new_length, call->flags, (void *)call->new_addr) != MAP_FAILED,
			       "mremap");
			break;
		case MADVISE:
			expect(!madvise(addr, call->length, call->flags), "madvise");
			break;
		case READ:
			for (uint64_t at = 0; at < call->length; at += 4096)
				sink = ((volatile unsigned char *)addr)[at];
			(void)sink;
			break;
		case WRITE:
			for (uint64_t at = 0; at < call->length; at += 4096)
				((volatile unsigned char *)addr)[at] = 1;
			break;
		case FORK: { /* what follows up to EXIT is the child's */
			pid_t child = fork();

			expect(child >= 0, "fork");
			if (child) {
				int status;

				expect(waitpid(child, &status, 0) == child && !status, "waitpid");
				while (call->op != EXIT)
					call++;
			}
			break;
		}
		case EXIT:
			_exit(0);
		}
	}
}

static unsigned count_vmas(const struct header *header)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	unsigned long start, end;
	char line[1024];
	unsigned count = 0;

	expect(!!maps, "/proc/self/maps");
	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start >= header->start && end <= header->end)
			count++;
	fclose(maps);
	return count;
}

int main(int argc, char **argv)
{
	char line[64];
	struct stat st;
	int fd = argc == 2 ? open(argv[1], O_RDONLY | O_CLOEXEC) : -1;

	expect(fd >= 0 && !fstat(fd, &st), "FILE");
	struct header *header = malloc(st.st_size);
	expect(header && read(fd, header, st.st_size) == st.st_size, "read FILE");
	const struct call *calls = (const struct call *)(header + 1);
	const struct call *measured = calls + header->setup;

	while (fgets(line, sizeof line, stdin)) {
		pid_t child = fork();
		int status;

		expect(child >= 0, "fork");
		if (!child) {
			perform(calls, measured);
			uint64_t begin = now();
			perform(measured, measured + header->measured);
			uint64_t took = now() - begin;
			printf("%llu %u\n", (unsigned long long)took, count_vmas(header));
			fflush(stdout);
			_exit(0);
		}
		expect(waitpid(child, &status, 0) == child && !status, "the measured child");
	}
	return 0;
}
