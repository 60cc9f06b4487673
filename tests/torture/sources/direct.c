/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads of a file into memory with seams of its own, while it is welded: O_DIRECT, and io_uring with reads in flight. */
#include "common.h"
#include <liburing.h>

enum { COUNT = 64, PAGES = 4, DEPTH = 16, SIZE = PAGES * PAGE };

int main(int argc, char **argv) {
  int ring_wanted = argc > 1 && !strcmp(argv[1], "uring");
  uint64_t *content = malloc(COUNT * SIZE);
  for (size_t w = 0; w < COUNT * SIZE / 8; w++) content[w] = word(9, w);
  int fd = open("direct.data", O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (write(fd, content, COUNT * SIZE) != COUNT * SIZE) bad("write", errno, 0);
  fsync(fd);
  close(fd);
  fd = open("direct.data", O_RDONLY | O_DIRECT);
  if (fd < 0) bad("this file system has no O_DIRECT", errno, 0);
  struct io_uring ring;
  if (ring_wanted && io_uring_queue_init(DEPTH, &ring, 0) < 0) bad("io_uring is not permitted here", 0, 0);
  for (unsigned long round = 1;; round++) {
    char *data = (char *)fragments(COUNT, PAGES, round);
    for (int again = 0; again < 30; again++) {
      /* Half a fragment further: each read crosses a seam. */
      for (size_t f = 0; f + DEPTH < COUNT; f += DEPTH) {
        for (size_t k = f; k < f + DEPTH; k++) {
          char *at = data + k * SIZE + SIZE / 2;
          if (!ring_wanted) {
            if (pread(fd, at, SIZE, k * SIZE) != SIZE) bad("pread", errno, k);
            continue;
          }
          struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
          io_uring_prep_read(entry, fd, at, SIZE, k * SIZE);
          io_uring_sqe_set_data64(entry, k);
        }
        if (!ring_wanted) continue;
        for (unsigned sent = 0; sent < DEPTH;) {
          int n = io_uring_submit(&ring);
          if (n < 0 && n != -EINTR) bad("io_uring_submit", -n, 0);
          if (n > 0) sent += n;
        }
        for (int k = 0; k < DEPTH; k++) {
          struct io_uring_cqe *done;
          int error;
          while ((error = io_uring_wait_cqe(&ring, &done)) == -EINTR) {
          }
          if (error) bad("io_uring_wait_cqe", -error, 0);
          if (done->res != (int)SIZE) bad("a read of the ring", -done->res, done->user_data);
          io_uring_cqe_seen(&ring, done);
        }
      }
      for (size_t k = 0; k < COUNT / DEPTH * DEPTH - DEPTH; k++)
        if (memcmp(data + k * SIZE + SIZE / 2, (char *)content + k * SIZE, SIZE)) bad("what was read differs", k, round);
      memset(data, round + again, COUNT * SIZE);
      nap(3000);
    }
    munmap(data, COUNT * SIZE);
    beat(round);
  }
}
