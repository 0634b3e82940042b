// log1p, sigmoid and tanh as sequences of IEEE operations, operation for operation those of `_log1p.py` and `_exp.py`.
#pragma once
#include "common.cuh"

// log(1 + x) of x >= 0, to 1e-12 relative; exactly 0 at 0.
__device__ inline double log1p_(double x) {
    const i64 sqrt_half = 0x3fe6a09e667f3bcdll;
    const i64 mantissa = (1ll << 52) - 1;
    const double u = __dadd_rn(1.0, x);
    const i64 above = __double_as_longlong(u) - sqrt_half;
    const i64 k = above >> 52;
    const double m = __longlong_as_double((above & mantissa) + sqrt_half);
    const double f = k == 0 ? x : __dsub_rn(m, 1.0);
    const double s = __ddiv_rn(f, __dadd_rn(2.0, f));
    const double z = __dmul_rn(s, s);
    double p = __dadd_rn(__dmul_rn(z, 1.0 / 15.0), 1.0 / 13.0);
    p = __dadd_rn(__dmul_rn(p, z), 1.0 / 11.0);
    p = __dadd_rn(__dmul_rn(p, z), 1.0 / 9.0);
    p = __dadd_rn(__dmul_rn(p, z), 1.0 / 7.0);
    p = __dadd_rn(__dmul_rn(p, z), 1.0 / 5.0);
    p = __dadd_rn(__dmul_rn(p, z), 1.0 / 3.0);
    p = __dmul_rn(p, z);
    const double t = __dadd_rn(s, s);
    return __dadd_rn(__dmul_rn((double)k, 0.6931471805599453), __dadd_rn(t, __dmul_rn(t, p)));
}

constexpr float LARGEST = 87.0f;  // exp(-87) is still a normal number

// s = 2**k and p = exp(r) - 1 with exp(-a) = s * (1 + p), for a from 0 to LARGEST.
__device__ inline void exp_parts(float a, float& s, float& p) {
    const float rounder = 12582912.0f;  // 1.5 * 2**23: adding it rounds, half to even, to an integer in the low bits
    const float shifted = __fsub_rn(rounder, __fmul_rn(a, (float)1.4426950408889634));
    const float k = __fsub_rn(shifted, rounder);
    s = __int_as_float((int)(((u32)__float_as_int(shifted) << 23) + (u32)__float_as_int(1.0f)));
    const float high = __fsub_rn(-a, __fmul_rn(k, 0.693359375f));
    const float r = __fsub_rn(high, __fmul_rn(k, (float)-2.12194440e-4));
    float q = __fadd_rn(__fmul_rn((float)(1.0 / 5040.0), r), (float)(1.0 / 720.0));
    q = __fadd_rn(__fmul_rn(q, r), (float)(1.0 / 120.0));
    q = __fadd_rn(__fmul_rn(q, r), (float)(1.0 / 24.0));
    q = __fadd_rn(__fmul_rn(q, r), (float)(1.0 / 6.0));
    q = __fadd_rn(__fmul_rn(q, r), (float)(1.0 / 2.0));
    p = __fadd_rn(__fmul_rn(q, __fmul_rn(r, r)), r);
}

// 1 / (1 + exp(-x)); below -87 it is 0, for NaN 1/2.
__device__ inline float sigmoid(float x) {
    float a = fabsf(x);
    a = a == a ? a : 0.0f;
    float s, p;
    exp_parts(a < LARGEST ? a : LARGEST, s, p);
    float e = __fadd_rn(__fmul_rn(s, p), s);
    e = a <= LARGEST ? e : 0.0f;
    return __fdiv_rn(x < 0.0f ? e : 1.0f, __fadd_rn(1.0f, e));
}

// tanh(x) as -u / (2 + u) with u = exp(-2 |x|) - 1; for NaN 0.
__device__ inline float tanh_(float x) {
    float a = fabsf(x);
    a = a == a ? a : 0.0f;
    a = __fadd_rn(a, a);
    float s, p;
    exp_parts(a < LARGEST ? a : LARGEST, s, p);
    const float u = __fadd_rn(__fmul_rn(s, p), __fsub_rn(s, 1.0f));
    const float t = __fdiv_rn(__fsub_rn(0.0f, u), __fadd_rn(2.0f, u));
    return x < 0.0f ? -t : t;
}

// In the order of `ACTIVATIONS`: linear, relu, sigmoid, tanh.
__device__ __noinline__ float activate(float x, i64 activation) {
    if (activation == 1) return x > 0.0f ? x : 0.0f;
    if (activation == 2) return sigmoid(x);
    return activation == 3 ? tanh_(x) : x;
}
