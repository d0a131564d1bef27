/* The device's own description: attributes, UUID, occupancy.  Everything follows from the card (see core.h). */
#include "device.h"

#include <string.h>

/* Attribute numbers after the enumeration CUdevice_attribute of the CUDA Driver API; what is not named is 0. */
int device_attribute(int attribute) {
  switch (attribute) {
    case 1: case 2: case 3: return THREADS_PER_BLOCK;       /* threads per block, block x, block y */
    case 4: return 64;                                      /* block z */
    case 5: return GREATEST_INT;                            /* grid x */
    case 6: case 7: return 65535;                           /* grid y, grid z */
    case 8: return SHARED_PER_BLOCK;
    case 9: return 65536;                                   /* constant memory */
    case 10: return WARP;
    case 11: return GREATEST_INT;                           /* pitch */
    case 12: return REGISTERS_PER_SM;                       /* registers per block */
    case 13: case 36: return CLOCK_KHZ;                     /* clock, memory clock */
    case 14: return 512;                                    /* texture alignment */
    case 15: return 1;                                      /* overlap */
    case 16: return card.sm_count;
    case 19: return 1;                                      /* maps host memory */
    case 31: return 1;                                      /* concurrent kernels */
    case 33: return 1;                                      /* PCI bus */
    case 37: return BUS_WIDTH;
    case 38: return L2_BYTES;
    case 39: return card.threads_per_sm;
    case 40: return 3;                                      /* copy engines */
    case 41: return 1;                                      /* unified addressing */
    case 75: return card.major;
    case 76: return card.minor;
    case 78: case 79: case 80: return 1;                    /* stream priorities, L1 caches */
    case 81: return card.shared_per_sm;
    case 82: return REGISTERS_PER_SM;
    case 83: return 1;                                      /* managed memory */
    case 87: return 32;                                     /* single to double ratio */
    case 89: case 90: case 91: case 95: return 1;           /* concurrent managed access, preemption, host pointers, cooperative */
    case 97: return card.shared_per_block_optin;
    case 99: case 102: case 103: return 1;                  /* host register, virtual memory, POSIX handles */
    case 106: return card.blocks_per_sm;
    case 108: return L2_BYTES / 2;
    case 109: return L2_BYTES;
    case 111: return card.major >= 8 ? 1024 : 0;            /* shared memory the system keeps */
    case 115: return 1;                                     /* memory pools */
    case 120: return card.major >= 9;                       /* clusters */
    default: return 0;
  }
}

Uuid device_uuid(int device) {
  Uuid uuid = {"qmem phantom "};
  uuid.bytes[15] = (char)device;
  return uuid;
}

/* Wheels hold code for some architectures, and a card runs the highest of its major that is not above it: an sm_89 card
 * runs sm_86 code.  CUB chooses its kernels by this number and fails on one that it was not built for. */
int code_version(void) {
  int version = 10 * card.major + card.minor;
  if (version == 89 || version == 87) return 86;
  if (version == 121) return 120;
  return version == 103 ? 100 : version;
}

int resident_blocks(int threads, size_t shared_bytes) {
  int warps = (threads > 0 ? threads + WARP - 1 : WARP) / WARP;
  int blocks = card.threads_per_sm / (warps * WARP);
  if (shared_bytes) {
    int by_shared = (int)(card.shared_per_sm / (shared_bytes + 1024));
    if (by_shared < blocks) blocks = by_shared;
  }
  if (blocks > card.blocks_per_sm) blocks = card.blocks_per_sm;
  return blocks < 1 ? 1 : blocks;
}
