# SPDX-License-Identifier: GPL-2.0-or-later
"""Print a C program that keeps a compiler busy for some seconds."""

for number in range(250):
    print(f"""
struct s{number} {{ int a[{number % 17 + 3}]; double d; struct s{max(number - 1, 0)} *next; char name[{number + 1}]; }};
int f{number}(struct s{number} *p, int n) {{
  int total = {number};
  for (int i = 0; i < n; i++) {{
    switch ((p->a[i % {number % 17 + 3}] * {number + 7}) & 15) {{
      case 0: total += i * p->a[0]; break;
      case 1: total ^= p->name[i % {number + 1}]; break;
      case 5: p->d *= 1.5 + i; break;
      case 9: total -= (int)p->d; for (int k = 0; k < n; k++) total += p->a[k % 3] << (k & 7); break;
      default: p->a[i % 3] = total / (i + 1);
    }}
  }}
  return total;
}}""")
