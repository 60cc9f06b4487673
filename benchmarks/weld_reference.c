/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The weld in C, to measure Python against: the same system calls on the same fragments.
 *
 * weld_reference MODE FRAGMENTS PAGES, where MODE is
 *   run     the sequence of vmaweld: all fragments folded into the first in one pass
 *   seam    seam by seam: mremap away, grow, register, move, unregister, for each fragment
 *   mremap  every fragment moved by a plain mremap, and nothing welded
 *   memcpy  the same bytes copied into memory that is there
 *   hold    make the fragments, wait for a line, then check them (a process to be welded)
 * Prints the seconds it took; every byte is checked afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef UFFDIO_MOVE
struct uffdio_move {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES 2
#define UFFD_FEATURE_MOVE (1 << 16)
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)

static void need(long result, const char *what)
{
	if (result == -1) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static char *room(size_t length)
{
	char *at = mmap(0, length + 2 * HUGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);

	need((long)at, "mmap");
	munmap(at, length + 2 * HUGE);
	return (char *)(((uintptr_t)at + HUGE) & -HUGE);
}

static uint64_t content(long fragment, long page)
{
	return ((uint64_t)fragment << 32) + page + 1;
}

static char *fragments(long count, long pages)
{
	size_t size = pages * PAGE;
	char *all = mmap(0, count * size + 2 * HUGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);

	need((long)all, "mmap");
	all = (char *)(((uintptr_t)all + HUGE) & -HUGE);
	for (long i = 0; i < count; i++) {
		/* Between guard pages, so that it takes no neighbour's anon_vma. */
		char *guards = mmap(0, size + 2 * PAGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0), *one = guards + PAGE;

		need((long)guards, "mmap");
		need((long)mmap(one, size, PROT_READ | PROT_WRITE, ANON | MAP_FIXED, -1, 0), "mmap");
		for (long page = 0; page < pages; page++)
			*(uint64_t *)(one + page * PAGE) = content(i, page);
		need((long)mremap(one, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, all + i * size), "mremap");
		need(munmap(guards, size + 2 * PAGE), "munmap");
	}
	return all;
}

static void check(const char *all, long count, long pages)
{
	for (long i = 0; i < count; i++)
		for (long page = 0; page < pages; page++)
			if (*(uint64_t *)(all + (i * pages + page) * PAGE) != content(i, page)) {
				fprintf(stderr, "fragment %ld page %ld differs\n", i, page);
				exit(1);
			}
}

static int open_userfaultfd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | 1);

	need(fd, "userfaultfd");
	need(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	return fd;
}

static void enlist(int fd, char *start, size_t length)
{
	struct uffdio_register all = { .range = { (uintptr_t)start, length }, .mode = UFFDIO_REGISTER_MODE_MISSING };

	need(ioctl(fd, UFFDIO_REGISTER, &all), "UFFDIO_REGISTER");
}

static void release(int fd, char *start, size_t length)
{
	struct uffdio_range range = { (uintptr_t)start, length };

	need(ioctl(fd, UFFDIO_UNREGISTER, &range), "UFFDIO_UNREGISTER");
}

static void move(int fd, char *to, char *from, size_t length)
{
	struct uffdio_move one = { .dst = (uintptr_t)to, .src = (uintptr_t)from, .len = length,
				   .mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES };

	need(ioctl(fd, UFFDIO_MOVE, &one), "UFFDIO_MOVE");
}

static void weld_run(char *all, long count, size_t size)
{
	char *end = all + count * size, *first_end = all + size;
	char *keep = (char *)(((uintptr_t)first_end - 1) & -HUGE);
	size_t kept, total;
	char *spare;
	int fd = open_userfaultfd();

	if (keep < all)
		keep = all;
	kept = first_end - keep;
	total = end - keep;
	spare = room(total) + ((uintptr_t)keep & (HUGE - 1));
	need((long)mmap(spare, total, PROT_NONE, ANON | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0), "mmap");
	enlist(fd, keep, total);
	need((long)mremap(keep, kept, kept, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, spare), "mremap");
	need(munmap(spare + kept, total - kept), "munmap");
	need((long)mremap(spare, kept, total, 0), "mremap");
	enlist(fd, spare, total);
	for (char *at = first_end; at < end; at += size)
		move(fd, spare + (at - keep), at, size);
	release(fd, spare, total);
	need((long)mremap(spare, total, total, MREMAP_MAYMOVE | MREMAP_FIXED, keep), "mremap");
	close(fd);
}

static void weld_seams(char *all, long count, size_t size)
{
	char *spare = room(size + HUGE);
	int fd = open_userfaultfd();

	for (long i = 1; i < count; i++) {
		char *place = all + i * size;
		char *away = spare + ((uintptr_t)place & (HUGE - 1));

		need((long)mremap(place, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away), "mremap");
		need((long)mremap(all, i * size, (i + 1) * size, 0), "mremap");
		enlist(fd, place, size);
		move(fd, place, away, size);
		release(fd, place, size);
		need(munmap(away, size), "munmap");
	}
	close(fd);
}

int main(int argc, char **argv)
{
	long count = argc > 3 ? atol(argv[2]) : 0, pages = argc > 3 ? atol(argv[3]) : 0;
	const char *mode = argc > 3 ? argv[1] : "";
	size_t size = pages * PAGE;
	char *all, *other;
	double began;

	if (count < 2 || pages < 1) {
		fprintf(stderr, "usage: weld_reference run|seam|mremap|memcpy|hold FRAGMENTS PAGES\n");
		return 2;
	}
	all = fragments(count, pages);
	if (!strcmp(mode, "hold")) {
		char line[8];

		printf("%lx\n", (unsigned long)all);
		fflush(stdout);
		if (!fgets(line, sizeof line, stdin))
			return 1;
		check(all, count, pages);
		puts("ok");
		return 0;
	}
	if (!strcmp(mode, "memcpy")) {
		other = mmap(0, count * size, PROT_READ | PROT_WRITE, ANON | MAP_POPULATE, -1, 0);
		need((long)other, "mmap");
	} else {
		other = mmap(0, count * size + 2 * HUGE, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
		need((long)other, "mmap");
		other = (char *)(((uintptr_t)other + HUGE) & -HUGE);
	}
	began = now();
	if (!strcmp(mode, "run"))
		weld_run(all, count, size);
	else if (!strcmp(mode, "seam"))
		weld_seams(all, count, size);
	else if (!strcmp(mode, "memcpy"))
		for (long i = 0; i < count; i++)
			memcpy(other + i * size, all + i * size, size);
	else
		for (long i = 0; i < count; i++)
			need((long)mremap(all + i * size, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, other + i * size),
			     "mremap");
	printf("%.9f\n", now() - began);
	check(!strcmp(mode, "memcpy") || !strcmp(mode, "mremap") ? other : all, count, pages);
	return 0;
}
