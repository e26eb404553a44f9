/* Detects words in a WAV file of one channel of 16 bits, a frame at a time, by the exported model.

   detect INPUT.wav OUTPUT WORD...: prints when it hears which word, and writes the probabilities of
   every frame, of no word and of each word, as floats. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "keyword.h"

enum { HEADER = 44 };

static uint32_t get(const unsigned char *from, int bytes) {
  return bytes ? from[0] | get(from + 1, bytes - 1) << 8 : 0;
}

int main(int count, char **arguments) {
  static keyword_state state;
  unsigned char header[HEADER], bytes[2 * KEYWORD_INPUTS];
  float samples[KEYWORD_INPUTS], classes[KEYWORD_OUTPUTS];
  FILE *in, *out;
  uint32_t frame, rate;
  int i, best, before = 0;

  if (count != 2 + KEYWORD_OUTPUTS || !(in = fopen(arguments[1], "rb")) ||
      !(out = fopen(arguments[2], "wb"))) {
    fprintf(stderr, "usage: detect INPUT.wav OUTPUT WORD... (%d words)\n", KEYWORD_OUTPUTS - 1);
    return 2;
  }
  if (fread(header, 1, HEADER, in) != HEADER || memcmp(header + 36, "data", 4) ||
      get(header + 20, 2) != 1 || get(header + 22, 2) != 1 || get(header + 34, 2) != 16) {
    fprintf(stderr, "detect: %s is no WAV file of one channel of 16 bits\n", arguments[1]);
    return 1;
  }
  rate = get(header + 24, 4);

  keyword_init(&state);
  for (frame = 0; fread(bytes, 2, KEYWORD_INPUTS, in) == KEYWORD_INPUTS; ++frame) {
    for (i = 0; i < KEYWORD_INPUTS; ++i) {
      samples[i] = (float)(int16_t)get(bytes + 2 * i, 2) / 32768.0f;
    }
    keyword_step(&state, samples, classes);
    fwrite(classes, sizeof *classes, KEYWORD_OUTPUTS, out);
    for (best = 0, i = 1; i < KEYWORD_OUTPUTS; ++i) best = classes[i] > classes[best] ? i : best;
    if (best && best != before) {
      printf("%8.2f s  %s\n", (double)frame * KEYWORD_INPUTS / rate, arguments[2 + best]);
    }
    before = best;
  }
  return fclose(in) | fclose(out) ? 1 : 0;
}
