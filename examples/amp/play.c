/* Plays a WAV file of one channel of 16 bits through the exported amplifier, 64 samples at a time.

   play INPUT.wav OUTPUT.wav: the output's samples are floats. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "amp.h"

enum { BLOCK = 64, HEADER = 44 };

static void put(unsigned char *to, uint32_t value, int bytes) {
  for (; bytes > 0; --bytes, value >>= 8) *to++ = (unsigned char)value;
}

static uint32_t get(const unsigned char *from, int bytes) {
  return bytes ? from[0] | get(from + 1, bytes - 1) << 8 : 0;
}

int main(int count, char **names) {
  static amp_state amp;
  unsigned char header[HEADER];
  FILE *in, *out;
  uint32_t samples, left, rate;

  if (count != 3 || !(in = fopen(names[1], "rb")) || !(out = fopen(names[2], "wb"))) {
    fprintf(stderr, "usage: play INPUT.wav OUTPUT.wav\n");
    return 2;
  }
  if (fread(header, 1, HEADER, in) != HEADER || memcmp(header + 36, "data", 4) ||
      get(header + 20, 2) != 1 || get(header + 22, 2) != 1 || get(header + 34, 2) != 16) {
    fprintf(stderr, "play: %s is no WAV file of one channel of 16 bits\n", names[1]);
    return 1;
  }
  rate = get(header + 24, 4);
  samples = get(header + 40, 4) / 2;
  put(header + 4, HEADER - 8 + 4 * samples, 4);
  put(header + 20, 3, 2); /* floats */
  put(header + 28, 4 * rate, 4);
  put(header + 32, 4, 2);
  put(header + 34, 32, 2);
  put(header + 40, 4 * samples, 4);
  fwrite(header, 1, HEADER, out);

  amp_init(&amp);
  for (left = samples; left > 0;) {
    const uint32_t n = left < BLOCK ? left : BLOCK;
    unsigned char bytes[2 * BLOCK];
    float block[BLOCK];
    uint32_t i;
    if (fread(bytes, 2, n, in) != n) return 1;
    for (i = 0; i < n; ++i) block[i] = (float)(int16_t)get(bytes + 2 * i, 2) / 32768.0f;
    amp_run(&amp, block, block, (int)n);
    fwrite(block, sizeof *block, n, out);
    left -= n;
  }
  fclose(in);
  return fclose(out) ? 1 : 0;
}
