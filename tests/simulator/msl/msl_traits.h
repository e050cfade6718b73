// Type traits, also for 16-bit floats.
#pragma once

#include "msl_types.h"

namespace metal {

using std::add_const_t;
using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::decay_t;
using std::negation;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_array_v;
using std::is_base_of_v;
using std::is_class_v;
using std::is_const_v;
using std::is_convertible_v;
using std::is_enum_v;
using std::is_integral;
using std::is_integral_v;
using std::is_pointer;
using std::is_pointer_v;
using std::is_reference_v;
using std::is_same;
using std::is_same_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::is_void_v;
using std::make_signed;
using std::make_signed_t;
using std::make_unsigned;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv_t;
using std::remove_pointer_t;
using std::remove_reference_t;
using std::true_type;
using std::underlying_type_t;

template <class T>
struct is_floating_point : bool_constant<std::is_floating_point_v<T> || is_small<remove_cv_t<T>>> {};
template <class T>
inline constexpr bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
struct is_arithmetic : bool_constant<std::is_arithmetic_v<T> || is_floating_point_v<T>> {};
template <class T>
inline constexpr bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
struct is_scalar : bool_constant<std::is_scalar_v<T> || is_floating_point_v<T>> {};
template <class T>
inline constexpr bool is_scalar_v = is_scalar<T>::value;
template <class T>
struct is_signed : bool_constant<std::is_signed_v<T> || is_small<remove_cv_t<T>>> {};
template <class T>
inline constexpr bool is_signed_v = is_signed<T>::value;
template <class... T>
using _disjunction = std::disjunction<T...>;
template <class... T>
using _conjunction = std::conjunction<T...>;
template <class T>
struct remove_addrspace {
  typedef T type;
};
template <class T>
using remove_addrspace_t = T;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};

template <class T, int DIGITS, int LEAST, int MOST>
struct SmallLimits {
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false, is_exact = false;
  static constexpr bool has_infinity = true, has_quiet_NaN = true;
  static constexpr int digits = DIGITS, radix = 2, min_exponent = LEAST, max_exponent = MOST;
  static T made(float x) { return T(x); }
  static T min() { return made(__builtin_ldexpf(1.f, LEAST - 1)); }
  static T max() { return made(__builtin_ldexpf(2.f - __builtin_ldexpf(1.f, 1 - DIGITS), MOST - 1)); }
  static T lowest() { return made(-float(max())); }
  static T epsilon() { return made(__builtin_ldexpf(1.f, 1 - DIGITS)); }
  static T infinity() { return made(__builtin_inff()); }
  static T quiet_NaN() { return made(__builtin_nanf("")); }
  static T denorm_min() { return made(__builtin_ldexpf(1.f, LEAST - DIGITS)); }
};
template <>
struct numeric_limits<half> : SmallLimits<half, 11, -13, 16> {};
template <>
struct numeric_limits<bfloat> : SmallLimits<bfloat, 8, -125, 128> {};

}  // namespace metal
