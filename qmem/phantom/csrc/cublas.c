/* cuBLAS and cuBLASLt (libcublas.so.12 and .13, libcublasLt.so.12 and .13).
 *
 * honest    the count of products, and their names as the last kernel
 * constant  one algorithm for every product, which needs no workspace; versions are those that torch was built with
 * refused   nothing: every product "succeeds", and writes nothing
 *
 * torch brings its own workspace (allocated through its own allocator), so its size is honest though nothing is here.
 * Handles and descriptors are small boxes.  The products themselves, and settings nobody reads back, are listed in
 * symbols.def.
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

enum { BOX = 64 };

API_BEGIN

Status cublasCreate_v2(Handle *handle) { *handle = calloc(1, BOX); return OK; }
Status cublasDestroy_v2(Handle handle) { free(handle); return OK; }
Status cublasGetVersion_v2(Handle handle, int *version) { (void)handle; start(); *version = card.cublas_version; return OK; }
Status cublasGetPointerMode_v2(Handle handle, int *mode) { (void)handle; *mode = 0; return OK; }
Status cublasGetMathMode(Handle handle, int *mode) { (void)handle; *mode = 0; return OK; }
Status cublasGetAtomicsMode(Handle handle, int *mode) { (void)handle; *mode = 0; return OK; }
Status cublasGetStream_v2(Handle handle, Handle *stream) { (void)handle; *stream = NULL; return OK; }
Status cublasGetSmCountTarget(Handle handle, int *count) { (void)handle; *count = 0; return OK; }

Status cublasGetProperty(int part, int *value) {
  start();
  int version = card.cublas_version;
  *value = part == 0 ? version / 10000 : part == 1 ? version / 100 % 100 : version % 100;
  return OK;
}

const char *cublasGetStatusString(Status status) { return status ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_SUCCESS"; }
const char *cublasGetStatusName(Status status) { return cublasGetStatusString(status); }

Status cublasLtCreate(Handle *handle) { return cublasCreate_v2(handle); }
Status cublasLtDestroy(Handle handle) { return cublasDestroy_v2(handle); }
size_t cublasLtGetVersion(void) { start(); return (size_t)card.cublas_version; }
size_t cublasLtGetCudartVersion(void) { start(); return (size_t)card.cudart_version; }
Status cublasLtGetProperty(int part, int *value) { return cublasGetProperty(part, value); }
const char *cublasLtGetStatusString(Status status) { return cublasGetStatusString(status); }
const char *cublasLtGetStatusName(Status status) { return cublasGetStatusString(status); }

Status cublasLtMatmulDescCreate(Handle *description) { return cublasCreate_v2(description); }
Status cublasLtMatmulDescDestroy(Handle description) { free(description); return OK; }
Status cublasLtMatmulDescSetAttribute(void) { return OK; }
Status cublasLtMatrixLayoutCreate(Handle *layout) { return cublasCreate_v2(layout); }
Status cublasLtMatrixLayoutDestroy(Handle layout) { free(layout); return OK; }
Status cublasLtMatrixLayoutSetAttribute(void) { return OK; }
Status cublasLtMatmulPreferenceCreate(Handle *preference) { return cublasCreate_v2(preference); }
Status cublasLtMatmulPreferenceDestroy(Handle preference) { free(preference); return OK; }
Status cublasLtMatmulPreferenceSetAttribute(void) { return OK; }
Status cublasLtMatrixTransformDescCreate(Handle *description) { return cublasCreate_v2(description); }
Status cublasLtMatrixTransformDescDestroy(Handle description) { free(description); return OK; }

Status cublasLtMatmulAlgoGetHeuristic(Handle lt, Handle product, Handle a, Handle b, Handle c, Handle d, Handle preference,
                                      int wanted, LtHeuristicResult *results, int *found) {
  (void)lt; (void)product; (void)a; (void)b; (void)c; (void)d; (void)preference;
  if (wanted > 0) results[0] = (LtHeuristicResult){.state = OK, .waves = 1};
  *found = wanted > 0;
  return OK;
}

Status cublasLtMatmulAlgoGetIds(Handle lt, int compute, int scale, int a, int b, int c, int d, int wanted, int *ids, int *found) {
  (void)lt; (void)compute; (void)scale; (void)a; (void)b; (void)c; (void)d;
  if (wanted > 0) ids[0] = 0;
  *found = wanted > 0;
  return OK;
}

Status cublasLtMatmulAlgoInit(Handle lt, int compute, int scale, int a, int b, int c, int d, int id, LtAlgorithm *algorithm) {
  (void)lt; (void)compute; (void)scale; (void)a; (void)b; (void)c; (void)d; (void)id;
  memset(algorithm, 0, sizeof *algorithm);
  return OK;
}

Status cublasLtMatmulAlgoCheck(Handle lt, Handle product, Handle a, Handle b, Handle c, Handle d,
                               const LtAlgorithm *algorithm, LtHeuristicResult *result) {
  (void)lt; (void)product; (void)a; (void)b; (void)c; (void)d; (void)algorithm;
  *result = (LtHeuristicResult){.state = OK, .waves = 1};
  return OK;
}

Status cublasLtMatmulAlgoCapGetAttribute(const LtAlgorithm *algorithm, int attribute, void *value, size_t n, size_t *written) {
  (void)algorithm;
  (void)attribute;
  memset(value, 0, n);
  if (written) *written = n;
  return OK;
}

Status cublasLtMatmulAlgoConfigGetAttribute(const LtAlgorithm *algorithm, int attribute, void *value, size_t n, size_t *written) {
  return cublasLtMatmulAlgoCapGetAttribute(algorithm, attribute, value, n, written);
}

Status cublasLtMatmulAlgoConfigSetAttribute(void) { return OK; }
Status cublasLtMatmul(void) { count_library_call("cublasLtMatmul"); return OK; }

API_END
