// SPDX-License-Identifier: Apache-2.0
// Functions of sixteen lanes, written once over the names of lanes_*.h. Included inside the
// namespace of a tier.
#pragma once

// e^x with a relative error below 2e-7 on [-87, 88]; 0 below, e^88 above; NaN stays NaN.
// Range reduction x = n ln 2 + r with |r| <= ln(2) / 2 and ln 2 in two parts (Cody and Waite), then
// the Taylor polynomial of degree 7, whose remainder there is below 6e-9.
inline F Exp(F x) {
  const F clamped = Min(Max(x, Set(-87.0f)), Set(88.0f));  // -87 for NaN.
  const I n = Round(Mul(clamped, Set(1.44269504f)));
  const F nf = Convert(n);
  F r = Fma(nf, Set(-0.693359375f), clamped);
  r = Fma(nf, Set(2.12194440e-4f), r);
  F p = Set(1.0f / 5040);
  p = Fma(p, r, Set(1.0f / 720));
  p = Fma(p, r, Set(1.0f / 120));
  p = Fma(p, r, Set(1.0f / 24));
  p = Fma(p, r, Set(1.0f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  p = Fma(p, r, Set(1.0f));
  const F value = Mul(p, PowerOfTwo(n));
  return Select(Less(x, Set(-87.0f)), Set(0.0f), Fma(clamped, Sub(x, x), value));
}

// x / (1 + e^-x)
inline F Silu(F x) { return Div(x, Add(Set(1.0f), Exp(Sub(Set(0.0f), x)))); }

// tanh x = 1 - 2 / (e^2x + 1), with an absolute error below 3e-7.
inline F Tanh(F x) { return Sub(Set(1.0f), Div(Set(2.0f), Add(Exp(Add(x, x)), Set(1.0f)))); }

// The tanh form of GELU: x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
inline F GeluTanh(F x) {
  const F cube = Mul(Mul(x, x), x);
  const F inner = Mul(Set(0.797884561f), Fma(Set(0.044715f), cube, x));
  return Mul(Mul(Set(0.5f), x), Add(Set(1.0f), Tanh(inner)));
}
