#ifndef ${NAME}_MODEL
#define ${NAME}_MODEL

/* Values of an input and of an output of a step, and of all weights. */
#define ${NAME}_INPUTS ${inputs}
#define ${NAME}_OUTPUTS ${outputs}
#define ${NAME}_WEIGHTS ${count}

${weights}/* All that is carried from step to step, to be read and set as you like. */
typedef struct {
${state}} ${name}_state;

/* Begin anew: with the states that the model begins with. */
static inline void ${name}_reset(${name}_state *s) {
${reset}}

${init}
${before}/* One step: of ${NAME}_INPUTS values ${NAME}_OUTPUTS. They may be written where the input was. */
static inline void ${name}_step(${name}_state *s, const float *in, float *out) {
${step}}

/* So many steps, one behind the other; the same. */
static inline void ${name}_run(${name}_state *s, const float *in, float *out, int steps) {
  int i;
${eight}  for (i = 0; i < steps; ++i) ${name}_step(s, in + i * ${NAME}_INPUTS, out + i * ${NAME}_OUTPUTS);
}

#endif /* ${NAME}_MODEL */
