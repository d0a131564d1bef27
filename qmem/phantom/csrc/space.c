/* The address space of the phantom: one reserved arena, first fit, so that repeated runs see the same addresses.
 *
 * Addresses are real memory of the host, of which only touched pages exist.  What fits in a small copy is really there;
 * the rest reads as zero.  A range that is given back forgets its contents.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"

#define ARENA_BASE ((void *)0x300000000000)
#define ARENA_BYTES (8192 * GIB)
#define LEAST_ARENA_BYTES (256 * GIB)
#define GRAIN (2 * MIB)

typedef struct { uint64_t at, n; } Range;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t arena, arena_bytes;
static Range *holes; /* sorted by address, never adjacent */
static int n_holes, holes_room;

static uint64_t round_up(uint64_t n, uint64_t grain) { return (n + grain - 1) & ~(grain - 1); }

static void insert_hole(int at, Range hole) {
  if (n_holes == holes_room) {
    holes_room = holes_room ? 2 * holes_room : 256;
    holes = realloc(holes, holes_room * sizeof *holes);
  }
  memmove(holes + at + 1, holes + at, (n_holes - at) * sizeof *holes);
  holes[at] = hole;
  n_holes++;
}

static void remove_hole(int at) {
  memmove(holes + at, holes + at + 1, (n_holes - at - 1) * sizeof *holes);
  n_holes--;
}

static void *reserve(void *base, uint64_t n) {
  int fixed = base ? MAP_FIXED_NOREPLACE : 0;
  void *p = mmap(base, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | fixed, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

void open_address_space(void) {
  arena_bytes = ARENA_BYTES;
  void *p = reserve(ARENA_BASE, arena_bytes);
  for (; !p && arena_bytes >= LEAST_ARENA_BYTES; arena_bytes /= 2) /* ulimit -v, or the base is taken */
    if ((p = reserve(NULL, arena_bytes))) break;
  if (!p) {
    fprintf(stderr, "qmem phantom: this process may not reserve %llu GiB of address space (ulimit -v?)\n",
            (unsigned long long)(LEAST_ARENA_BYTES / GIB));
    abort();
  }
  madvise(p, arena_bytes, MADV_NOHUGEPAGE); /* a touched byte shall cost one page, not 2 MiB */
  madvise(p, arena_bytes, MADV_DONTDUMP);
  arena = (uint64_t)p;
  insert_hole(0, (Range){arena, arena_bytes});
}

int in_address_space(const void *address) {
  uint64_t a = (uint64_t)address;
  return a >= arena && a < arena + arena_bytes;
}

static void *take_from(int at, uint64_t start, uint64_t n) {
  Range hole = holes[at];
  Range before = {hole.at, start - hole.at}, after = {start + n, hole.at + hole.n - start - n};
  remove_hole(at);
  if (after.n) insert_hole(at, after);
  if (before.n) insert_hole(at, before);
  return (void *)start;
}

void *take_addresses(size_t n, size_t alignment) {
  uint64_t want = round_up(n, GRAIN), grain = alignment > GRAIN ? alignment : GRAIN;
  void *taken = NULL;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_holes && !taken; i++) {
    uint64_t start = round_up(holes[i].at, grain);
    if (start + want <= holes[i].at + holes[i].n) taken = take_from(i, start, want);
  }
  pthread_mutex_unlock(&lock);
  return taken;
}

static int hole_after(uint64_t address) {
  int low = 0, high = n_holes;
  while (low < high) {
    int middle = (low + high) / 2;
    if (holes[middle].at < address) low = middle + 1;
    else high = middle;
  }
  return low;
}

void give_addresses(void *address, size_t n) {
  Range back = {(uint64_t)address, round_up(n, GRAIN)};
  forget_contents(address, back.n);
  pthread_mutex_lock(&lock);
  int at = hole_after(back.at);
  if (at < n_holes && back.at + back.n == holes[at].at) {
    back.n += holes[at].n;
    remove_hole(at);
  }
  if (at > 0 && holes[at - 1].at + holes[at - 1].n == back.at) holes[at - 1].n += back.n;
  else insert_hole(at, back);
  pthread_mutex_unlock(&lock);
}

void forget_contents(void *address, size_t n) {
  uint64_t first = round_up((uint64_t)address, 4096), end = ((uint64_t)address + n) & ~(uint64_t)4095;
  if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
}
