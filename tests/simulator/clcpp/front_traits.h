// Type traits.
#pragma once

#include "front_vectors.h"

namespace metal {

template <class T>
struct numeric_limits {
  static T max();
  static T min();
  static T lowest();
  static T epsilon();
  static T infinity();
  static T quiet_NaN();
};

template <class T, T V>
struct integral_constant {
  static constant constexpr T value = V;
};
template <bool V>
using bool_constant = integral_constant<bool, V>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <bool, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool C, class T = void>
using enable_if_t = typename enable_if<C, T>::type;
template <bool, class A, class B>
struct conditional {
  typedef A type;
};
template <class A, class B>
struct conditional<false, A, B> {
  typedef B type;
};
template <bool C, class A, class B>
using conditional_t = typename conditional<C, A, B>::type;
template <class A, class B>
struct is_same : false_type {};
template <class A>
struct is_same<A, A> : true_type {};
template <class T>
struct is_floating_point : bool_constant<__is_floating_point(T)> {};
template <>
struct is_floating_point<bfloat> : true_type {};
template <class T>
struct is_integral : bool_constant<__is_integral(T)> {};
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T>
struct is_signed : bool_constant<T(-1) < T(0)> {};
template <class T>
struct is_unsigned : bool_constant<is_integral<T>::value && !is_signed<T>::value> {};
template <class T>
struct is_pointer : bool_constant<__is_pointer(T)> {};
#define MSL_ASKED(name) \
  template <class T>    \
  constant constexpr bool name##_v = name<T>::value;
MSL_ASKED(is_floating_point)
MSL_ASKED(is_integral)
MSL_ASKED(is_arithmetic)
MSL_ASKED(is_signed)
MSL_ASKED(is_unsigned)
MSL_ASKED(is_pointer)
#undef MSL_ASKED
template <class A, class B>
constant constexpr bool is_same_v = is_same<A, B>::value;
#define MSL_WITHOUT(name, from)       \
  template <class T>                  \
  struct name {                       \
    typedef T type;                   \
  };                                  \
  template <class T>                  \
  struct name<from> {                 \
    typedef T type;                   \
  };                                  \
  template <class T>                  \
  using name##_t = typename name<T>::type;
MSL_WITHOUT(remove_const, const T)
MSL_WITHOUT(remove_cv, const T)
MSL_WITHOUT(remove_pointer, thread T*)
#undef MSL_WITHOUT
template <class T>
struct make_unsigned {
  typedef T type;
};
template <class T>
struct make_signed {
  typedef T type;
};
#define MSL_SIGNS(signed_, unsigned_) \
  template <>                         \
  struct make_unsigned<signed_> {     \
    typedef unsigned_ type;           \
  };                                  \
  template <>                         \
  struct make_signed<unsigned_> {     \
    typedef signed_ type;             \
  };
MSL_SIGNS(char, uchar)
MSL_SIGNS(short, ushort)
MSL_SIGNS(int, uint)
MSL_SIGNS(long, ulong)
#undef MSL_SIGNS
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;
template <class T>
using make_signed_t = typename make_signed<T>::type;
template <class T>
struct remove_addrspace {
  typedef T type;
};
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;

}  // namespace metal
