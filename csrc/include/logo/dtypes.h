// The dtypes of crops as bits, and their conversion, for host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "logo/macros.h"
#include "logo/problem.h"

namespace logo {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

LOGO_FUNCTION float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
LOGO_FUNCTION uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

LOGO_FUNCTION float to_float(float value) { return value; }
LOGO_FUNCTION float to_float(bf16 value) { return bits_to_float(uint32_t(value.bits) << 16); }
LOGO_FUNCTION float to_float(f16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13));
  // Shifting the exponent by a product also gets the subnormals right.
  const float scaled = bits_to_float(magnitude << 13) * 0x1p112f;
  return bits_to_float(sign | float_to_bits(scaled));
}
LOGO_FUNCTION double to_double(double value) { return value; }
template <class Source>
LOGO_FUNCTION double to_double(Source value) {
  return to_float(value);
}

LOGO_FUNCTION void from_float(float value, float* to) { *to = value; }
LOGO_FUNCTION void from_float(float value, bf16* to) {  // round to nearest even
  const uint32_t bits = float_to_bits(value);
  to->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
LOGO_FUNCTION void from_float(float value, f16* to) {  // round to nearest even
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    to->bits = uint16_t(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000) {  // 65520 and more round to infinity
    to->bits = uint16_t(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // subnormal: let the adder round at 2⁻²⁴
    const float shifted = bits_to_float(magnitude) + 0.5f;
    to->bits = uint16_t(sign | (float_to_bits(shifted) - 0x3f000000));
  } else {
    to->bits = uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
}

LOGO_FUNCTION int64_t dtype_bytes(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// The largest finite value of a gradient's dtype.
LOGO_FUNCTION double largest(DType dtype) {
  switch (dtype) {
    case DType::f64: return 1.7976931348623157e308;
    case DType::f32: return 3.4028234663852886e38;
    case DType::bf16: return 3.3895313892515355e38;
    case DType::f16: return 65504;
  }
  return 0;
}

LOGO_FUNCTION const char* row_address(const Rows& rows, int64_t image, int64_t crop) {
  return static_cast<const char*>(rows.data) +
         (image * rows.image_stride + crop * rows.crop_stride) * dtype_bytes(rows.dtype);
}

// The dtype of elements of type T.
template <class T>
constexpr DType kDType = DType::f32;
template <>
constexpr DType kDType<double> = DType::f64;
template <>
constexpr DType kDType<bf16> = DType::bf16;
template <>
constexpr DType kDType<f16> = DType::f16;

}  // namespace logo
