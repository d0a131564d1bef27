/* The rest of the libraries (symbols.def): settings that nobody reads back, products, and whole libraries that are refused. */
#include "core.h"

#define SETTING(name) Status name(void) { return OK; }
#define PRODUCT(name) Status name(void) { count_library_call(#name); return OK; }
#define TEXT(name) const char *name(void) { return "not supported by the phantom GPU"; }
#define REFUSED(status, name) Status name(void) { note("refused " #name "\n"); return status; }

API_BEGIN
#include "symbols.def"

/* Two that return a text through an argument, which torch's profiler prints. */
Status cuptiGetResultString(Status status, const char **text) {
  *text = status ? "not supported by the phantom GPU" : "no error";
  return OK;
}

Status cuptiGetErrorMessage(Status status, const char **text) { return cuptiGetResultString(status, text); }
API_END
