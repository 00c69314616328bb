// Where the sums of a team's threads meet (gemv_rows.wgsl imports it, whose values it sees): by
// shuffles within a subgroup, and across them in shared memory, a share of SUMS for each.
# macro functions()
{{ workgroup("meeting", SUM, THREADS // LEAST * SUMS) }}
fn total(team: u32, i: u32, shares: u32) -> {{ SUM }} {
# if LANES and SUBGROUPS
  let at = team * {{ TEAM // LEAST * SUMS }}u + i;
  var sum = meeting[at];
#   for s in range(1, TEAM // LEAST)
  sum += meeting[at + {{ s * SUMS }}u];
#   endfor
  return sum;
# else
  var sum = {{ SUM }}(0);
  for (var s = 0u; s < shares; s++) { sum += meeting[(team * shares + s) * {{ SUMS }}u + i]; }
  return sum;
# endif
}
# if LATE
// 1 / rms of row m of x.
fn inverse_rms(team: u32, m: u32, shares: u32) -> f32 {
  return inverseSqrt(total(team, {{ R * M }}u + m, shares) / {{ K }}.0 + p.eps);
}
# endif
# endmacro

// sum{of}, sum{of + 1}, ... (`count`, a power of 2), each added up over the threads of a team that
// are in one subgroup, go to place `first` and behind of their share. At every step half of the
// threads keep one half of the sums and give away the other.
# macro gather(of, count, first)
  {
#   set n = namespace(left=count, which="")
#   if SUBGROUPS
#     for d in (1, 2, 4, 8, 16, 32, 64) if d < MOST
#       if n.left > 1 and d < LEAST
#         set n.left = n.left // 2
    let odd{{ d }} = (thread & {{ d }}u) != 0u;
#         for i in range(of, of + n.left)
    sum{{ i }} = select(sum{{ i }}, sum{{ i + n.left }}, odd{{ d }})
      + subgroupShuffleXor(select(sum{{ i + n.left }}, sum{{ i }}, odd{{ d }}), {{ d }}u);
#         endfor
#         set n.which = n.which ~ " + select(0u, %du, odd%d)" % (n.left, d)
#       else
#         for i in range(of, of + n.left)
#           if LANES
    sum{{ i }} += subgroupShuffleXor(sum{{ i }}, {{ d }}u);
#           else
    sum{{ i }} += select({{ SUM }}(0), subgroupShuffleXor(sum{{ i }}, {{ d }}u), {{ d }}u < width);
#           endif
#         endfor
#       endif
#     endfor
#   endif
    if (thread % width < {{ count // n.left }}u) {
      let place = thread / width * {{ SUMS }}u + {{ first }}{{ n.which }};
#   for i in range(n.left)
      meeting[place + {{ i }}u] = sum{{ of + i }};
#   endfor
    }
  }
# endmacro

// Waits for all sums; `shares` are those that a team's lie in.
# macro meet()
  workgroupBarrier();
  let shares = {{ TEAM }}u / width;
# endmacro
