/* The books (see core.h).
 *
 * honest    addresses, capacity, out of memory, bytes by space (device, managed, pinned), counts of allocations,
 *           launches and copies; the contents of copies up to COPY_MOST bytes, and of any copy whose values the guard knows
 * constant  the context's size (the loader's prior)
 * refused   nothing: what the device cannot do is refused where it is asked for
 */
#define _GNU_SOURCE
#include "core.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC 0x716d656d7068616eull /* "qmemphan" */
#define PAGE 4096
#define COPY_MOST (64 * KIB) /* larger copies are weights and activations, whose values nobody may ask for */
#define GRANULARITY (2 * MIB)

typedef struct { uint64_t at, n, charged; Space space; int device; } Allocation;

/* Asked before a copy to the host: 1 means that the bytes at the source are true, and the copy is carried out in full. */
typedef int (*ReadHook)(const char *kernel, const void *source, size_t n);

Card card;
Books *books;
__thread int current_device;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static Allocation *allocations; /* sorted by address */
static int n_allocations, allocations_room;
static char directory[200], page_path[240];
static FILE *log_file;
static ReadHook read_hook;

/* ---- the card ---- */

/* Limits by compute capability, from the table "Technical Specifications per Compute Capability" of NVIDIA's CUDA C++
 * Programming Guide (13.0): shared memory per multiprocessor in KiB (a block may take 1 KiB less), resident threads
 * and blocks per multiprocessor. */
static const struct { int major, minor, shared_kib, threads, blocks; } limits[] = {
  {7, 0, 96, 2048, 32},  {7, 5, 64, 1024, 16},  {8, 0, 164, 2048, 32},  {8, 6, 100, 1536, 16},  {8, 7, 164, 1536, 16},
  {8, 9, 100, 1536, 24}, {9, 0, 228, 2048, 32}, {10, 0, 228, 2048, 32}, {10, 3, 228, 2048, 32}, {11, 0, 228, 1536, 24},
  {12, 0, 100, 1536, 24}, {12, 1, 100, 1536, 24},
};

static void look_up_limits(void) {
  for (unsigned i = 0; i < sizeof limits / sizeof *limits; i++) {
    if (limits[i].major != card.major || limits[i].minor != card.minor) continue;
    int reserved_kib = card.major >= 8 ? 1 : 0; /* the system keeps 1 KiB per block since 8.0 */
    card.shared_per_sm = limits[i].shared_kib * 1024;
    card.shared_per_block_optin = (limits[i].shared_kib - reserved_kib) * 1024;
    card.threads_per_sm = limits[i].threads;
    card.blocks_per_sm = limits[i].blocks;
  }
}

static const char *setting(const char *key) {
  const char *text = getenv("QMEM_PHANTOM");
  size_t n = strlen(key);
  while (text && *text) {
    if (!strncmp(text, key, n) && text[n] == '=') return text + n + 1;
    text = strchr(text, ';');
    if (text) text++;
  }
  return NULL;
}

static uint64_t number(const char *key) {
  const char *text = setting(key);
  return text ? strtoull(text, NULL, 10) : 0;
}

static void read_text(const char *key, char *into, size_t room) {
  const char *text = setting(key);
  snprintf(into, room, "%.*s", text ? (int)strcspn(text, ";") : 0, text ? text : "");
}

static void read_card(void) {
  read_text("name", card.name, sizeof card.name);
  read_text("books", directory, sizeof directory);
  card.major = (int)number("major");
  card.minor = (int)number("minor");
  card.sm_count = (int)number("sm_count");
  card.devices = (int)number("devices"); /* without QMEM_PHANTOM: none */
  card.total_bytes = number("total_bytes");
  card.context_bytes = number("context_bytes");
  card.cudart_version = (int)number("cudart");
  card.cublas_version = (int)number("cublas");
  card.cudnn_version = (int)number("cudnn");
  look_up_limits();
}

int no_such_device(int device) { return device < 0 || device >= card.devices; }

/* ---- the page that other processes read ---- */

static int create_page(void) {
  if (!directory[0]) return -1; /* loaded without QMEM_PHANTOM: there is no device either */
  mkdir(directory, 0700);
  snprintf(page_path, sizeof page_path, "%s/%d", directory, (int)getpid());
  return open(page_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
}

static void open_page(void) {
  void *page = MAP_FAILED;
  int file = create_page();
  if (file >= 0 && !ftruncate(file, PAGE)) page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (file >= 0) close(file);
  if (page == MAP_FAILED) { /* no shared memory here: the books are this process's alone */
    page_path[0] = 0;
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  books = page;
  books->pid = getpid();
  books->n_devices = card.devices;
  books->magic = MAGIC;
}

static void close_page(void) {
  if (page_path[0]) unlink(page_path);
  if (page_path[0]) rmdir(directory); /* the last process to leave succeeds */
  if (log_file) fflush(log_file);
}

static void after_fork(void) {
  pthread_mutex_init(&lock, NULL);
  page_path[0] = 0;
  open_page();
}

static void start_once(void) {
  _Static_assert(sizeof(Books) <= PAGE, "the books fit in one page");
  read_card();
  const char *log_path = getenv("QMEM_PHANTOM_LOG");
  if (log_path && *log_path) log_file = fopen(log_path, "w");
  open_address_space();
  open_page();
  pthread_atfork(NULL, NULL, after_fork);
  atexit(close_page);
}

void start(void) { pthread_once(&once, start_once); }

void use_device(int device) {
  start();
  if (!books->context[device]) books->context[device] = card.context_bytes;
}

/* Reads the books of a process; 0 when it is gone, and then its page goes too. */
static int read_books(const char *name, Books *into) {
  char path[512];
  int pid = atoi(name), ok;
  if (pid <= 0) return 0;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  if (pid != getpid() && kill(pid, 0) && errno == ESRCH) return unlink(path), 0;
  int file = open(path, O_RDONLY);
  ok = file >= 0 && read(file, into, sizeof *into) == sizeof *into && into->magic == MAGIC;
  if (file >= 0) close(file);
  return ok;
}

int device_processes(int device, unsigned *pids, uint64_t *bytes, int most) {
  int n = 0;
  start();
  DIR *pages = opendir(directory);
  if (!pages) return 0;
  for (struct dirent *entry; n < most && (entry = readdir(pages));) {
    Books theirs;
    if (!read_books(entry->d_name, &theirs) || !theirs.context[device]) continue;
    pids[n] = (unsigned)theirs.pid;
    bytes[n++] = theirs.device[device].now + theirs.context[device];
  }
  closedir(pages);
  return n;
}

/* ---- capacity ---- */

static void raise_gauge(Gauge *gauge, uint64_t n) {
  gauge->now += n;
  if (gauge->now > gauge->peak) gauge->peak = gauge->now;
}

uint64_t device_used(int device) {
  unsigned pids[256];
  uint64_t bytes[256], used = 0;
  start();
  if (!page_path[0]) return books->device[device].now + books->context[device];
  int n = device_processes(device, pids, bytes, 256);
  for (int i = 0; i < n; i++) used += bytes[i];
  return used;
}

int charge(int device, uint64_t n) {
  use_device(device);
  if (device_used(device) + n > card.total_bytes) {
    books->out_of_memory++;
    note("out of memory on device %d for %llu\n", device, (unsigned long long)n);
    return 1;
  }
  raise_gauge(&books->device[device], n);
  return 0;
}

void discharge(int device, uint64_t n) { books->device[device].now -= n; }

/* ---- allocations ---- */

static int first_at_or_after(uint64_t address) {
  int low = 0, high = n_allocations;
  while (low < high) {
    int middle = (low + high) / 2;
    if (allocations[middle].at < address) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void insert_allocation(Allocation new) {
  if (n_allocations == allocations_room) {
    allocations_room = allocations_room ? 2 * allocations_room : 256;
    allocations = realloc(allocations, allocations_room * sizeof *allocations);
  }
  int at = first_at_or_after(new.at);
  memmove(allocations + at + 1, allocations + at, (n_allocations - at) * sizeof *allocations);
  allocations[at] = new;
  n_allocations++;
}

/* What the device loses by an allocation: whole 2 MiB pages; small ones share a page, so they count by their grain. */
static uint64_t charged_bytes(Space space, size_t n) {
  if (space != SPACE_DEVICE) return n;
  uint64_t grain = n >= MIB ? GRANULARITY : 512;
  return (n + grain - 1) & ~(grain - 1);
}

static int open_account(Space space, uint64_t n) {
  if (space == SPACE_DEVICE) return charge(current_device, n);
  if (space == SPACE_MANAGED) use_device(current_device);
  raise_gauge(space == SPACE_MANAGED ? &books->managed : &books->pinned, n);
  return 0;
}

static void close_account(const Allocation *gone) {
  if (gone->space == SPACE_DEVICE) discharge(gone->device, gone->charged);
  else if (gone->space == SPACE_MANAGED) books->managed.now -= gone->charged;
  else books->pinned.now -= gone->charged;
}

void *allocate(Space space, size_t n) {
  start();
  uint64_t charged = charged_bytes(space, n);
  pthread_mutex_lock(&lock);
  void *address = open_account(space, charged) ? NULL : take_addresses(n, 0);
  if (address) {
    insert_allocation((Allocation){(uint64_t)address, n, charged, space, current_device});
    books->allocations++;
    note("allocate space %d device %d %p %zu\n", space, current_device, address, n);
  }
  pthread_mutex_unlock(&lock);
  return address;
}

int release(void *address) {
  start();
  pthread_mutex_lock(&lock);
  int at = first_at_or_after((uint64_t)address);
  int missing = at == n_allocations || allocations[at].at != (uint64_t)address;
  if (!missing) {
    Allocation gone = allocations[at];
    memmove(allocations + at, allocations + at + 1, (n_allocations - at - 1) * sizeof *allocations);
    n_allocations--;
    close_account(&gone);
    give_addresses(address, gone.n);
    books->frees++;
    note("free space %d device %d %p %llu\n", gone.space, gone.device, address, (unsigned long long)gone.n);
  }
  pthread_mutex_unlock(&lock);
  return missing;
}

int find_allocation(const void *address, Space *space, int *device, void **base, size_t *n) {
  uint64_t a = (uint64_t)address;
  start();
  if (!in_address_space(address)) return 0;
  pthread_mutex_lock(&lock);
  int at = first_at_or_after(a + 1) - 1;
  Allocation found = {a, 0, 0, SPACE_MAPPED, current_device}; /* reserved and mapped by cuMemMap */
  if (at >= 0 && a < allocations[at].at + allocations[at].n) found = allocations[at];
  pthread_mutex_unlock(&lock);
  *space = found.space;
  *device = found.device;
  if (base) *base = (void *)found.at;
  if (n) *n = found.n;
  return 1;
}

/* ---- copies ---- */

static int on_device(const void *address) {
  Space space;
  int device;
  return find_allocation(address, &space, &device, NULL, NULL) && space != SPACE_PINNED;
}

/* Counts a copy; returns whether its bytes are to be moved. */
static int account_copy(const void *to, const void *from, size_t n) {
  int to_device = on_device(to), from_device = on_device(from), known = 0;
  if (to_device && !from_device) {
    books->copies_to_device++;
    books->bytes_to_device += n;
  } else if (from_device && !to_device) {
    books->copies_to_host++;
    books->bytes_to_host += n;
    note("read %zu bytes after %s\n", n, last_kernel());
    if (read_hook) known = read_hook(last_kernel(), from, n);
  }
  return known || n <= COPY_MOST || (!to_device && !from_device);
}

void copy_bytes(void *to, const void *from, size_t n) {
  start();
  if (n && account_copy(to, from, n)) memmove(to, from, n);
}

void copy_rows(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows) {
  start();
  if (!width || !rows || !account_copy(to, from, width * rows)) return;
  for (size_t i = 0; i < rows; i++) memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
}

void set_bytes(void *to, int value, size_t n) {
  start();
  if (n <= COPY_MOST || !on_device(to)) memset(to, value, n);
  else if (value == 0) { /* the pages in between read as zero once they are forgotten */
    memset(to, 0, PAGE);
    memset((char *)to + n - PAGE, 0, PAGE);
    forget_contents(to, n);
  }
}

/* ---- the rest ---- */

Handle new_handle(void) {
  static uintptr_t next = 0x1000;
  return (Handle)__sync_add_and_fetch(&next, 16);
}

void note(const char *format, ...) {
  if (!log_file) return;
  va_list arguments;
  va_start(arguments, format);
  vfprintf(log_file, format, arguments);
  va_end(arguments);
}

API_BEGIN

const Books *qmem_phantom_books(void) {
  start();
  return books;
}

void qmem_phantom_reset_peaks(void) {
  start();
  for (int i = 0; i < MAX_DEVICES; i++) books->device[i].peak = books->device[i].now;
  books->managed.peak = books->managed.now;
  books->pinned.peak = books->pinned.now;
}

void qmem_phantom_on_read(ReadHook hook) { read_hook = hook; }

void qmem_phantom_mark(const char *text) { note("mark %s\n", text); }

API_END
