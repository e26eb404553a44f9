// What R calls.
#include <R_ext/Rdynload.h>

#include <algorithm>
#include <thread>

#include "layer.h"

namespace elman {
namespace {

int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

// A handle is an external pointer to a Layer, which is made when it is first needed: in a handle
// that was saved and read again it is not there. The description, which is, lies beside it.
SEXP make_handle(SEXP description) { return R_MakeExternalPtr(nullptr, R_NilValue, description); }

SEXP describe(SEXP handle) { return R_ExternalPtrProtected(handle); }

template <class T>
void finalize(SEXP handle) {
  delete static_cast<Layer<T>*>(R_ExternalPtrAddr(handle));
  R_ClearExternalPtr(handle);
}

template <class T>
Layer<T>& layer_of(SEXP handle, const Description& d) {
  if (!R_ExternalPtrAddr(handle)) R_SetExternalPtrAddr(handle, new Layer<T>(d));
  return *static_cast<Layer<T>*>(R_ExternalPtrAddr(handle));
}

const double* real_or_null(SEXP x) { return x == R_NilValue ? nullptr : REAL(x); }

Call read_call(SEXP input, SEXP batch_first, SEXP lengths, SEXP reset, SEXP states, SEXP masks) {
  const int* const dims = INTEGER(Rf_getAttrib(input, R_DimSymbol));
  Call c{};
  c.input = REAL(input);
  c.batch_first = Rf_asLogical(batch_first) != 0;
  c.L = dims[c.batch_first ? 1 : 0];
  c.N = dims[c.batch_first ? 0 : 1];
  c.lengths = lengths == R_NilValue ? nullptr : INTEGER(lengths);
  c.reset = reset == R_NilValue ? nullptr : LOGICAL(reset);
  for (R_xlen_t s = 0; s < Rf_xlength(states); ++s)
    c.states[s] = real_or_null(VECTOR_ELT(states, s));
  c.masks = masks;
  return c;
}

// A new array in place i of a list, which keeps it.
double* put_array(SEXP list, R_xlen_t i, index first, index second, index features) {
  const SEXP array = Rf_allocVector(REALSXP, first * second * features);
  SET_VECTOR_ELT(list, i, array);
  const SEXP dim = PROTECT(Rf_allocVector(INTSXP, 3));
  INTEGER(dim)[0] = static_cast<int>(first);
  INTEGER(dim)[1] = static_cast<int>(second);
  INTEGER(dim)[2] = static_cast<int>(features);
  Rf_setAttrib(array, R_DimSymbol, dim);
  UNPROTECT(1);
  return REAL(array);
}

double* put_array_like(SEXP list, R_xlen_t i, const Call& c, index features) {
  return c.batch_first ? put_array(list, i, c.N, c.L, features)
                       : put_array(list, i, c.L, c.N, features);
}

void put_states(SEXP list, R_xlen_t i, const Description& d, const Call& c, double* (&states)[2]) {
  for (int s = 0; s < d.states; ++s) {
    states[s] = put_array(list, i + s, d.layers * d.directions, c.N, d.state_size(s));
  }
}

// list(output, h_n, c_n if there is one, what backward needs if keeps)
template <class T>
SEXP forward_as(SEXP handle, const Description& d, const Call& c, bool keeps) {
  const SEXP results = PROTECT(Rf_allocVector(VECSXP, 1 + d.states + (keeps ? 1 : 0)));
  double* const output = put_array_like(results, 0, c, d.features());
  double* states[2] = {};
  put_states(results, 1, d, c, states);
  T* kept = nullptr;
  if (keeps) {
    index size = 0;
    guarded(d.name, [&] { size = Run<T>(d, layer_of<T>(handle, d), c, threads).kept_size(); });
    SET_VECTOR_ELT(results, 1 + d.states, Rf_allocVector(RAWSXP, size * sizeof(T)));
    kept = reinterpret_cast<T*>(RAW(VECTOR_ELT(results, 1 + d.states)));
  }
  guarded(d.name, [&] {
    Run<T>(d, layer_of<T>(handle, d), c, threads).forward(output, {states[0], states[1]}, kept);
  });
  UNPROTECT(1);
  return results;
}

// list(d_input, d_h_0, d_c_0 if there is one, of each weight its gradient)
template <class T>
SEXP backward_as(SEXP handle, const Description& d, const Call& c, SEXP kept, SEXP d_output) {
  const SEXP results = PROTECT(Rf_allocVector(VECSXP, 2 + d.states));
  double* const d_input = put_array_like(results, 0, c, d.D);
  double* states[2] = {};
  put_states(results, 1, d, c, states);
  const SEXP d_weights = Rf_allocVector(VECSXP, Rf_xlength(d.weights));
  SET_VECTOR_ELT(results, 1 + d.states, d_weights);
  for (R_xlen_t i = 0; i < Rf_xlength(d_weights); ++i) {
    SET_VECTOR_ELT(d_weights, i, Rf_duplicate(VECTOR_ELT(d.weights, i)));
  }
  const double* const d_out = real_or_null(d_output);
  const T* const from = reinterpret_cast<const T*>(RAW(kept));
  guarded(d.name, [&] {
    Run<T>(d, layer_of<T>(handle, d), c, threads)
        .backward(from, d_out, d_input, {states[0], states[1]}, d_weights);
  });
  UNPROTECT(1);
  return results;
}

// Before work that makes the Layer, since R may have no memory for this.
void register_finalizer(SEXP handle, const Description& d) {
  if (R_ExternalPtrAddr(handle)) return;
  R_RegisterCFinalizerEx(handle, d.is_double ? finalize<double> : finalize<float>, FALSE);
}

SEXP forward(SEXP handle, SEXP input, SEXP batch_first, SEXP lengths, SEXP reset, SEXP states,
             SEXP masks, SEXP keeps) {
  const Description d(describe(handle));
  const Call c = read_call(input, batch_first, lengths, reset, states, masks);
  register_finalizer(handle, d);
  const bool does_keep = Rf_asLogical(keeps) != 0;
  return d.is_double ? forward_as<double>(handle, d, c, does_keep)
                     : forward_as<float>(handle, d, c, does_keep);
}

SEXP backward(SEXP handle, SEXP input, SEXP batch_first, SEXP lengths, SEXP reset, SEXP d_states,
              SEXP masks, SEXP kept, SEXP d_output) {
  const Description d(describe(handle));
  const Call c = read_call(input, batch_first, lengths, reset, d_states, masks);
  register_finalizer(handle, d);
  return d.is_double ? backward_as<double>(handle, d, c, kept, d_output)
                     : backward_as<float>(handle, d, c, kept, d_output);
}

// c(gates, states) of a cell.
SEXP cell(SEXP name, SEXP cell_name) {
  const char* const wanted = CHAR(STRING_ELT(cell_name, 0));
  int gates = 0, states = 0;
  guarded(CHAR(STRING_ELT(name, 0)), [&] {
    const Kernel<float>& kernel = kernel_named<float>(wanted);
    gates = kernel.gates;
    states = kernel.has_c ? 2 : 1;
  });
  const SEXP result = Rf_allocVector(INTSXP, 2);
  INTEGER(result)[0] = gates;
  INTEGER(result)[1] = states;
  return result;
}

// A weight's numbers in a vector of their own; as float32 has them unless is_double.
SEXP weight(SEXP x, SEXP is_double) {
  const SEXP result = PROTECT(Rf_allocVector(REALSXP, Rf_xlength(x)));
  const double* const from = REAL(x);
  double* const to = REAL(result);
  const bool rounds = Rf_asLogical(is_double) == 0;
  for (R_xlen_t i = 0; i < Rf_xlength(x); ++i)
    to[i] = rounds ? static_cast<float>(from[i]) : from[i];
  UNPROTECT(1);
  return result;
}

SEXP get_threads() { return Rf_ScalarInteger(threads); }

SEXP set_threads(SEXP count) {
  threads = Rf_asInteger(count);
  return R_NilValue;
}

template <class Function>
DL_FUNC address(Function* function) {
  return reinterpret_cast<DL_FUNC>(reinterpret_cast<void (*)()>(function));
}

const R_CallMethodDef routines[] = {{"layer", address(make_handle), 1},
                                    {"describe", address(describe), 1},
                                    {"forward", address(forward), 8},
                                    {"backward", address(backward), 9},
                                    {"cell", address(cell), 2},
                                    {"weight", address(weight), 2},
                                    {"get_threads", address(get_threads), 0},
                                    {"set_threads", address(set_threads), 1},
                                    {nullptr, nullptr, 0}};

}  // namespace
}  // namespace elman

extern "C" void R_init_elman(DllInfo* dll) {
  R_registerRoutines(dll, nullptr, elman::routines, nullptr, nullptr);
  R_useDynamicSymbols(dll, FALSE);
  R_PreserveObject(elman::where_r_goes_on() = R_MakeUnwindCont());
}
