/* The books of the phantom GPU: what is allocated where, what was launched, what was copied.
 *
 * The API files (runtime.c, driver.c, cublas.c, cudnn.c, nvml.c) translate calls into these; they own no state of the
 * device.  The core knows no CUDA call, no torch and no Python.
 */
#ifndef PHANTOM_CORE_H
#define PHANTOM_CORE_H

#include "types.h"

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

enum { MAX_DEVICES = 8 };

typedef enum { SPACE_DEVICE = 1, SPACE_MANAGED, SPACE_PINNED, SPACE_MAPPED } Space;

/* The card, as the loader describes it in QMEM_PHANTOM, with limits that follow from its compute capability. */
typedef struct {
  char name[256];
  int major, minor, sm_count, devices;
  uint64_t total_bytes, context_bytes;
  int cudart_version, cublas_version, cudnn_version;
  int shared_per_block_optin, shared_per_sm, threads_per_sm, blocks_per_sm;
} Card;

typedef struct { uint64_t now, peak; } Gauge;

/* One page of memory per process, which NVML's stand-in reads in every process of the same phantom. */
typedef struct {
  uint64_t magic;
  int32_t pid, n_devices;
  Gauge device[MAX_DEVICES];      /* cudaMalloc and cuMemCreate */
  uint64_t context[MAX_DEVICES];  /* 0 until the process uses the device */
  Gauge managed, pinned;
  uint64_t allocations, frees, out_of_memory, launches, library_calls;
  uint64_t copies_to_device, bytes_to_device, copies_to_host, bytes_to_host;
} Books;

extern Card card;
extern Books *books;
extern __thread int current_device;

void start(void);              /* reads QMEM_PHANTOM and opens the books; every API entry that needs them calls it */
void use_device(int device);   /* the first use of a device makes its context's bytes appear */
int no_such_device(int device);

/* capacity */
int charge(int device, uint64_t n);     /* 0, or 1 when the device has no room: that is an out-of-memory */
void discharge(int device, uint64_t n);
uint64_t device_used(int device);       /* bytes and contexts of all live processes of this phantom */
int device_processes(int device, unsigned *pids, uint64_t *bytes, int most);

/* memory */
void *allocate(Space space, size_t n);  /* NULL: no room */
int release(void *address);             /* 0, or 1 when nothing begins at the address */
int find_allocation(const void *address, Space *space, int *device, void **base, size_t *n);
void copy_bytes(void *to, const void *from, size_t n);
void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows);
void set_bytes(void *to, int value, size_t n);

/* addresses (space.c) */
void open_address_space(void);
int in_address_space(const void *address);
void *take_addresses(size_t n, size_t alignment);
void give_addresses(void *address, size_t n);
void forget_contents(void *address, size_t n);

/* kernels (kernels.c) */
void name_kernel(const void *function, const char *name);
void count_launch(const void *function);      /* a kernel that is never run */
void count_library_call(const char *name);    /* cuBLAS, cuDNN: remembered as the last kernel */
const char *last_kernel(void);                /* of this thread */

/* the log (QMEM_PHANTOM_LOG names its file): every allocation, free, launch and copy to the host, in order */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

Handle new_handle(void); /* a number that stands for an object without contents */

/* API files wrap their definitions in these; everything else stays inside the library. */
#define API_BEGIN _Pragma("GCC visibility push(default)")
#define API_END _Pragma("GCC visibility pop")

#endif
