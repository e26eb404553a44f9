/* What a Cortex-M begins with on the boards that QEMU knows as mps2: newlib does the rest. */
#include <stdint.h>

extern uint32_t __stack;
extern void _start(void);

static void begin(void) {
#if defined(__ARM_FP)
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit on */
  __asm volatile("dsb\n isb");
#endif
  _start();
}

static void fault(void) {
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &__stack, begin, fault, fault, fault, fault, fault};
