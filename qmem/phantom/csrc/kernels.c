/* Kernels by name: registered by the address of their host stub, counted when launched, never run. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#include "core.h"

#define SLOTS (1u << 19) /* torch registers about 10^5 kernels */

typedef struct { const void *function; const char *name; uint64_t launches; } Kernel;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Kernel *kernels; /* open addressing */
static __thread const char *last;

static Kernel *slot_of(const void *function) {
  if (!kernels)
    kernels = mmap(NULL, SLOTS * sizeof *kernels, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  unsigned i = (unsigned)(((uint64_t)function * 0x9E3779B97F4A7C15ull) >> 45);
  while (kernels[i].function && kernels[i].function != function) i = (i + 1) & (SLOTS - 1);
  return &kernels[i];
}

void name_kernel(const void *function, const char *name) {
  pthread_mutex_lock(&lock);
  Kernel *kernel = slot_of(function);
  kernel->function = function;
  kernel->name = name;
  pthread_mutex_unlock(&lock);
}

void count_launch(const void *function) {
  use_device(current_device);
  pthread_mutex_lock(&lock);
  Kernel *kernel = slot_of(function);
  if (kernel->function) kernel->launches++;
  last = kernel->function ? kernel->name : "a kernel without a name";
  books->launches++;
  pthread_mutex_unlock(&lock);
  note("launch %s\n", last);
}

void count_library_call(const char *name) {
  use_device(current_device);
  __sync_add_and_fetch(&books->library_calls, 1);
  last = name;
  note("launch %s\n", name);
}

const char *last_kernel(void) { return last ? last : "no kernel yet"; }

API_BEGIN

/* The first launched kernel at or after a slot; returns the slot after it, or -1 when there is none. */
int qmem_phantom_kernel(int slot, const char **name, uint64_t *launches) {
  for (int i = slot; kernels && i < (int)SLOTS; i++) {
    if (!kernels[i].launches) continue;
    *name = kernels[i].name;
    *launches = kernels[i].launches;
    return i + 1;
  }
  return -1;
}

API_END
