/* Conversions between the element types of XLA's buffers and those that a compiled loop knows.

   As XLA converts: float to integer saturates, complex to real drops the imaginary part, half
   precisions round to nearest even. Codes are those of XLA's FFI (JB_DataType). */

#ifndef JAXBIND_CONVERT_H_
#define JAXBIND_CONVERT_H_

#include <complex.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef void (*jb_converter)(const char *from, char *to, int64_t count);

static inline float jb_from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1Fu, rest = h & 0x3FFu, bits;
  float f;
  if (exponent == 0x1Fu) {
    bits = sign | 0x7F800000u | (rest << 13);
  } else if (exponent) {
    bits = sign | ((exponent + 112) << 23) | (rest << 13);
  } else { /* subnormal: rest * 2^-24, exact */
    f = ldexpf((float)rest, -24);
    return sign ? -f : f;
  }
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t jb_to_half(double d) {
  uint16_t sign = signbit(d) ? 0x8000u : 0;
  double a = fabs(d);
  int e;
  if (isnan(d)) return sign | 0x7E00u;
  if (a >= 65520.0) return sign | 0x7C00u;
  if (a < 6.103515625e-05) return sign | (uint16_t)rint(ldexp(a, 24)); /* subnormal, or the least normal */
  (void)frexp(a, &e);
  uint32_t scaled = (uint32_t)rint(ldexp(a, 11 - e)); /* 1024 to 2048 */
  return sign | (uint16_t)(((uint32_t)(e + 14) << 10) + (scaled - 1024));
}

static inline float jb_from_bfloat16(uint16_t h) {
  uint32_t bits = (uint32_t)h << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline uint16_t jb_to_bfloat16(double d) {
  float f = (float)d;
  uint32_t bits;
  if (isnan(d)) return signbit(d) ? 0xFFC0u : 0x7FC0u;
  if ((double)f != d && isfinite(f)) { /* round to odd first, so that rounding twice is right */
    memcpy(&bits, &f, 4);
    if (fabs((double)f) > fabs(d)) bits -= 1;
    bits |= 1;
  } else {
    memcpy(&bits, &f, 4);
  }
  return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

#define JB_SATURATE(type, least, most) \
  static inline type jb_to_##type(double d) { \
    return d != d ? 0 : d <= (double)(least) ? (least) : d >= (double)(most) ? (most) : (type)d; \
  }
JB_SATURATE(int8_t, INT8_MIN, INT8_MAX)
JB_SATURATE(int16_t, INT16_MIN, INT16_MAX)
JB_SATURATE(int32_t, INT32_MIN, INT32_MAX)
JB_SATURATE(int64_t, INT64_MIN, INT64_MAX)
JB_SATURATE(uint8_t, 0, UINT8_MAX)
JB_SATURATE(uint16_t, 0, UINT16_MAX)
JB_SATURATE(uint32_t, 0, UINT32_MAX)
JB_SATURATE(uint64_t, 0, UINT64_MAX)

/* name, type in memory, how it is read (kinds: I integer, R real, C complex) */
#define JB_INTEGERS(X, ...) \
  X(i8, int8_t, ##__VA_ARGS__) X(i16, int16_t, ##__VA_ARGS__) X(i32, int32_t, ##__VA_ARGS__) \
  X(i64, int64_t, ##__VA_ARGS__) X(u8, uint8_t, ##__VA_ARGS__) X(u16, uint16_t, ##__VA_ARGS__) \
  X(u32, uint32_t, ##__VA_ARGS__) X(u64, uint64_t, ##__VA_ARGS__)

#define JB_CONVERT(from, FROM, to, TO, expression) \
  static void jb_##from##_to_##to(const char *restrict a, char *restrict b, int64_t n) { \
    const FROM *restrict x = (const FROM *)a; \
    TO *restrict y = (TO *)b; \
    for (int64_t i = 0; i < n; i++) { const FROM v = x[i]; y[i] = (expression); } \
  }

/* from integers (and bool), exactly where the target can hold it */
#define JB_FROM_INTEGER(name, T) \
  JB_CONVERT(name, T, b, uint8_t, v != 0) \
  JB_CONVERT(name, T, i8, int8_t, (int8_t)v) JB_CONVERT(name, T, i16, int16_t, (int16_t)v) \
  JB_CONVERT(name, T, i32, int32_t, (int32_t)v) JB_CONVERT(name, T, i64, int64_t, (int64_t)v) \
  JB_CONVERT(name, T, u8, uint8_t, (uint8_t)v) JB_CONVERT(name, T, u16, uint16_t, (uint16_t)v) \
  JB_CONVERT(name, T, u32, uint32_t, (uint32_t)v) JB_CONVERT(name, T, u64, uint64_t, (uint64_t)v) \
  JB_CONVERT(name, T, f16, uint16_t, jb_to_half((double)v)) \
  JB_CONVERT(name, T, bf16, uint16_t, jb_to_bfloat16((double)v)) \
  JB_CONVERT(name, T, f32, float, (float)v) JB_CONVERT(name, T, f64, double, (double)v) \
  JB_CONVERT(name, T, c64, float complex, (float)v) JB_CONVERT(name, T, c128, double complex, (double)v)
#define JB_FROM_BOOL(name, T) JB_FROM_INTEGER(name, T)
JB_INTEGERS(JB_FROM_INTEGER)
JB_FROM_BOOL(b, uint8_t)

/* from real and complex numbers: R(v) is the real part, Z(v) the number */
#define JB_FROM_FLOAT(name, T, R, Z) \
  JB_CONVERT(name, T, b, uint8_t, Z(v) != 0) \
  JB_CONVERT(name, T, i8, int8_t, jb_to_int8_t(R(v))) JB_CONVERT(name, T, i16, int16_t, jb_to_int16_t(R(v))) \
  JB_CONVERT(name, T, i32, int32_t, jb_to_int32_t(R(v))) JB_CONVERT(name, T, i64, int64_t, jb_to_int64_t(R(v))) \
  JB_CONVERT(name, T, u8, uint8_t, jb_to_uint8_t(R(v))) JB_CONVERT(name, T, u16, uint16_t, jb_to_uint16_t(R(v))) \
  JB_CONVERT(name, T, u32, uint32_t, jb_to_uint32_t(R(v))) JB_CONVERT(name, T, u64, uint64_t, jb_to_uint64_t(R(v))) \
  JB_CONVERT(name, T, f16, uint16_t, jb_to_half((double)R(v))) \
  JB_CONVERT(name, T, bf16, uint16_t, jb_to_bfloat16((double)R(v))) \
  JB_CONVERT(name, T, f32, float, (float)R(v)) JB_CONVERT(name, T, f64, double, (double)R(v)) \
  JB_CONVERT(name, T, c64, float complex, (float complex)Z(v)) \
  JB_CONVERT(name, T, c128, double complex, (double complex)Z(v))
#define JB_SAME(v) (v)
#define JB_REAL(v) creal(v)
JB_FROM_FLOAT(f16, uint16_t, jb_from_half, jb_from_half)
JB_FROM_FLOAT(bf16, uint16_t, jb_from_bfloat16, jb_from_bfloat16)
JB_FROM_FLOAT(f32, float, JB_SAME, JB_SAME)
JB_FROM_FLOAT(f64, double, JB_SAME, JB_SAME)
JB_FROM_FLOAT(c64, float complex, JB_REAL, JB_SAME)
JB_FROM_FLOAT(c128, double complex, JB_REAL, JB_SAME)

#define JB_ROW(name) \
  {jb_##name##_to_b, jb_##name##_to_i8, jb_##name##_to_i16, jb_##name##_to_i32, jb_##name##_to_i64, \
   jb_##name##_to_u8, jb_##name##_to_u16, jb_##name##_to_u32, jb_##name##_to_u64, jb_##name##_to_f16, \
   jb_##name##_to_bf16, jb_##name##_to_f32, jb_##name##_to_f64, jb_##name##_to_c64, jb_##name##_to_c128}

static const jb_converter jb_converters[15][15] = {
    JB_ROW(b), JB_ROW(i8), JB_ROW(i16), JB_ROW(i32), JB_ROW(i64), JB_ROW(u8), JB_ROW(u16), JB_ROW(u32),
    JB_ROW(u64), JB_ROW(f16), JB_ROW(bf16), JB_ROW(f32), JB_ROW(f64), JB_ROW(c64), JB_ROW(c128)};

static inline int jb_place(int code) { /* of a JB_DataType in the table; -1: not there */
  switch (code) {
    case 1: return 0;   /* pred */
    case 2: return 1;   /* s8 */
    case 3: return 2;
    case 4: return 3;
    case 5: return 4;
    case 6: return 5;   /* u8 */
    case 7: return 6;
    case 8: return 7;
    case 9: return 8;
    case 10: return 9;  /* f16 */
    case 16: return 10; /* bf16 */
    case 11: return 11; /* f32 */
    case 12: return 12;
    case 15: return 13; /* c64 */
    case 18: return 14; /* c128 */
    default: return -1;
  }
}

/* A function that converts `count` contiguous elements; NULL if there is none. */
static inline jb_converter jb_converter_of(int from, int to) {
  int i = jb_place(from), j = jb_place(to);
  return i < 0 || j < 0 ? NULL : jb_converters[i][j];
}

static inline int64_t jb_itemsize(int code) {
  static const int64_t sizes[15] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 8, 16};
  int i = jb_place(code);
  if (i < 0) return (code >= 19 && code <= 20) || (code >= 23 && code <= 25) || code == 28 || code == 29 || code == 33; /* float8 */
  return sizes[i];
}

#endif
