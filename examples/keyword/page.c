/* The exported model as WebAssembly: a page writes a frame to input(), calls step(), and reads
   output(). */
#include "keyword.h"

#define EXPORT(name) __attribute__((export_name(name)))

static keyword_state state;
static float in[KEYWORD_INPUTS], out[KEYWORD_OUTPUTS];

EXPORT("input") float *input(void) { return in; }
EXPORT("output") float *output(void) { return out; }
EXPORT("reset") void reset(void) { keyword_init(&state); }
EXPORT("step") void step(void) { keyword_step(&state, in, out); }
