/* cuDNN (libcudnn.so.9): the graph API, which torch uses for attention on Hopper and newer.
 *
 * honest    the count of executed plans
 * constant  every graph is accepted with one engine; a plan asks for no workspace of its own; the version is the one that
 *           torch was built with
 * refused   convolutions, recurrent layers, CTC and the rest of the old API (symbols.def)
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

typedef struct { int type; Handle stream; } Box;

/* cudnnBackendAttributeName_t and cudnnBackendAttributeType_t, the ones that are answered. */
enum {
  ENGINE_HEURISTIC_RESULTS = 202, ENGINE_CONFIG_ENGINE = 300, ENGINE_CONFIG_WORKSPACE = 303, PLAN_WORKSPACE = 402,
  PLAN_JSON = 405, VARIANT_PACK = 802, ENGINE_GLOBAL_INDEX = 1301,
  TYPE_INT64 = 3, TYPE_INT32_NOTE = 23
};

API_BEGIN

size_t cudnnGetVersion(void) { start(); return (size_t)card.cudnn_version; }
size_t cudnnGetCudartVersion(void) { start(); return (size_t)card.cudart_version; }

Status cudnnGetProperty(int part, int *value) {
  start();
  int version = card.cudnn_version; /* 92400 is 9.24.0 */
  *value = part == 0 ? version / 10000 : part == 1 ? version / 100 % 100 : version % 100;
  return OK;
}

const char *cudnnGetErrorString(Status status) {
  return status ? "CUDNN_STATUS_NOT_SUPPORTED (by the phantom GPU)" : "CUDNN_STATUS_SUCCESS";
}

void cudnnGetLastErrorString(char *text, size_t room) { if (room) *text = 0; }
Status cudnnCreate(Handle *handle) { *handle = calloc(1, sizeof(Box)); return OK; }
Status cudnnDestroy(Handle handle) { free(handle); return OK; }
Status cudnnSetStream(Handle handle, Handle stream) { ((Box *)handle)->stream = stream; return OK; }
Status cudnnGetStream(Handle handle, Handle *stream) { *stream = ((Box *)handle)->stream; return OK; }

Status cudnnBackendCreateDescriptor(int type, Handle *descriptor) {
  Box *box = calloc(1, sizeof *box);
  box->type = type;
  *descriptor = box;
  return OK;
}

Status cudnnBackendDestroyDescriptor(Handle descriptor) { free(descriptor); return OK; }
Status cudnnBackendInitialize(Handle descriptor) { (void)descriptor; return OK; }
Status cudnnBackendFinalize(Handle descriptor) { (void)descriptor; return OK; }
Status cudnnBackendSetAttribute(void) { return OK; }

/* How many elements an attribute has: what a graph's builder insists on being told. */
static int64_t elements(int attribute, int type) {
  switch (attribute) {
    case ENGINE_HEURISTIC_RESULTS: case ENGINE_CONFIG_ENGINE: case ENGINE_CONFIG_WORKSPACE: case PLAN_WORKSPACE:
    case VARIANT_PACK: case ENGINE_GLOBAL_INDEX: return 1;
    case PLAN_JSON: return 3;
    default: return type == TYPE_INT64 || type == TYPE_INT32_NOTE;
  }
}

Status cudnnBackendGetAttribute(Handle descriptor, int attribute, int type, int64_t wanted, int64_t *found, void *value) {
  int64_t n = elements(attribute, type);
  (void)descriptor;
  if (value && wanted > 0 && type == TYPE_INT64 && n) *(int64_t *)value = attribute == VARIANT_PACK;
  if (value && wanted > 0 && type == TYPE_INT32_NOTE) *(int32_t *)value = 0;
  if (value && wanted > 0 && attribute == PLAN_JSON) memcpy(value, "{}", wanted < 3 ? wanted : 3);
  if (found) *found = n;
  return OK;
}

Status cudnnBackendExecute(void) { count_library_call("cudnnBackendExecute"); return OK; }

API_END
