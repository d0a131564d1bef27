/* What runtime.c, driver.c and nvml.c say alike about the device. */
#ifndef PHANTOM_DEVICE_H
#define PHANTOM_DEVICE_H

#include "core.h"

enum {
  THREADS_PER_BLOCK = 1024, WARP = 32, REGISTERS_PER_SM = 65536, SHARED_PER_BLOCK = 48 * 1024, GREATEST_INT = 2147483647,
  /* Constants: no allocation of torch, bitsandbytes or transformers was seen to depend on them. */
  DRIVER_VERSION = 13000, CLOCK_KHZ = 1500000, L2_BYTES = 40 * 1024 * 1024, BUS_WIDTH = 384
};

int device_attribute(int attribute);              /* cudaDeviceAttr and CUdevice_attribute share their numbers */
Uuid device_uuid(int device);
int code_version(void);                           /* the machine code in a wheel that the card would run */
int resident_blocks(int threads, size_t shared_bytes);

#endif
