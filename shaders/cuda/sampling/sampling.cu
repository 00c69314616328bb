// Choosing tokens; the definition is in boostr/ops/sampling.py. No value is read on the host,
// nothing is sorted but what lies around a border.
//
// Weights are integers, W[i] = round(2^40 exp((x[i] - x[0]) / temperature)), so that sums are
// exact: a row gives the same token whatever the number of blocks and the order of their atomics.
//
// `sample` and `filtered_probabilities`: CLUSTER blocks of 1024 threads a row (V below 2^18):
//   1. the first candidate, by a reduction, and the first of each thread's elements;
//   2. a histogram over (x[0] - x) / temperature: 1024 bins of 1/42 octave of weight, the last one
//      open, of how many candidates and how much weight are in each;
//   3. block 0 (the leader) sums it up and finds in which bins the borders of top-k, top-p and
//      min-p lie. If all that may matter fits in a list of 1024, this is gathered and sorted; else
//      each border's bin is, when it is needed. A bin of more than 1024 candidates is split further
//      by the candidates' 64-bit keys, order of logit and id: these differ, so that this ends;
//   4. the draw is one more border: the first candidate at which the summed weight exceeds u times
//      the weight that is kept.
// With top-k up to 256 there is a short cut for 2 and 3: a histogram of x[0] - x over the threads'
// firsts alone, in bins of 1/32 of the value. The bin with the k-th of these is not before the bin
// of the k-th candidate, so that a list of all up to there has what is needed; only if it is too
// long, steps 2 and 3 are done.
// All blocks do their part of each of the leader's orders (`Order`); it decides on the next, and
// puts it into their shared memory.
// Macros: LOGIT float | f16 | bf16, CLUSTER 1, 2, 4, 8, THREADS 1024.
#define LOADS 2
#include "philox.cuh"
#include "row_cluster.cuh"

#define BINS 1024
#define OCTAVES 24.f
#define ONE 1099511627776.f  // 2^40
#define SHORT_CUT 256  // the largest top-k that takes it
#define MAGIC 8388608.f  // 2^23

// -- the state of a row ---------------------------------------------------------------------------
enum { COUNT_FIRSTS, FILL, RANGE, SPLIT, GATHER_FIRSTS, GATHER_BINS, GATHER_KEYS, DONE };  // orders
enum { TOP_K, TOP_P, MIN_P, DRAW };                           // borders; the odd ones are of weight
struct Order {
  int what, from_bin, to_bin, shift;  // SPLIT: bins of 2^shift keys
  u64 low, high;  // keys, both inclusive; DONE: the last kept key, and the weight kept
  float drop;     // GATHER_FIRSTS: all with x[0] - x below it
};
struct Sums {  // one histogram of the whole row; sums up to and including each bin
  u64 mass[BINS];
  u32 count[BINS];
};
struct Spot {  // a candidate; sums up to and including it
  u64 key, mass;
  u32 count;
};
struct Options {
  float top_p, min_p;
  int top_k;
  u32 u;  // the draw: of 2^24
};
// What each thread of the cluster knows of its row.
struct Row {
  const LOGIT* x;
  int V;
  float highest, rate;  // x[0], log2(e) / temperature
  DEVICE float octaves(float v) const { return (highest - v) * rate; }
  DEVICE float weight(float v) const {
    const float y = exp2_fast(-octaves(v));
    return v == highest ? 1.f : fminf(y, 1.f);  // never nan
  }
  DEVICE u64 mass(float v) const { return __float2ull_rn(weight(v) * ONE); }
  // x + 2^23 has x rounded in its low bits, and takes no conversion unit. inf is the last bin.
  DEVICE int bin(float v) const {
    u32 at = __float_as_uint(__fmaf_rn(octaves(v), (BINS - 1) / OCTAVES, MAGIC));
    at -= __float_as_uint(MAGIC);
    return v == highest ? 0 : (int)min(at, BINS - 1u);
  }
};
// The bin of a thread's first candidate, by the exponent and 5 bits of x[0] - x, from 2^-12 on.
#define FIRST_BIN_OF_BITS (115 << 5)
DEVICE int first_bin(float drop) {
  int at = (int)(__float_as_uint(drop) >> 18) - FIRST_BIN_OF_BITS;
  return drop > 0.f ? max(0, min(at, BINS - 1)) : 0;
}
// The least x[0] - x that is beyond the bin.
DEVICE float end_of_bin(int bin) { return __int_as_float((bin + 1 + FIRST_BIN_OF_BITS) << 18); }

struct Shared {
  Options options;
  u64 list[BINS];             // every block: what it gathered; the leader: sorted
  u64 list_mass[BINS];        // leader: sums up to and including each of the list
  Sums coarse, fine;          // leader
  u32 low[BINS], high[BINS];  // every block's own histogram: halves of weights,
  u32 count[BINS + 2];        // counts; how many weigh min_p or more
  u64 slots[WARPS + CLUSTER];
  u64 range[2][CLUSTER];  // leader: least key and least complement of each block
  u64 room[2][WARPS];
  Order order;      // every block
  Spot last, spot;  // leader, as all below: the last kept; the one at a border
  u64 list_before, mass_before, border;  // sums before the list, and before what will be gathered
  u32 list_count, count_before, list_size;
  u32 gathered, above_min_p;  // `gathered`: every block
  int bin, step, bins[3];
};

// -- each block's part of an order ---------------------------------------------------------------
DEVICE void clear_histogram(Shared& s) {
  s.low[threadIdx.x] = s.high[threadIdx.x] = s.count[threadIdx.x] = 0;
  if (threadIdx.x == 0) s.count[BINS] = 0;
}
DEVICE void add_to_bin(Shared& s, int bin, u32 count, u64 mass) {
  atomicAdd(&s.count[bin], count);
  u32 low = (u32)mass;
  u32 carry = atomicAdd(&s.low[bin], low) > ~low;
  u32 high = (u32)(mass >> 32) + carry;
  if (high) atomicAdd(&s.high[bin], high);
}
DEVICE u64 warp_total(u64 x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
  return x;
}

// The first histogram. Most of a vocabulary is in the last bin, which is summed in registers.
DEVICE void fill_bins(Shared& s, const Row& r) {
  u32 rest_mass = 0, rest_count = 0, likely = 0;  // the rest's weights are below 2^17
  float least = s.options.min_p;
  for_row(r.x, r.V, [&](float v, int) {
    int bin = r.bin(v);
    float w = r.weight(v);
    likely += w >= least;
    if (bin == BINS - 1) {
      rest_mass += __float_as_uint(w * ONE + MAGIC) - __float_as_uint(MAGIC);
      rest_count++;
    } else {
      add_to_bin(s, bin, 1, __float2ull_rn(w * ONE));
    }
  });
  u64 rest = warp_total((u64)rest_mass);
  u64 counts = warp_total((u64)rest_count << 32 | likely);
  if ((threadIdx.x & 31) == 0) {
    add_to_bin(s, BINS - 1, (u32)(counts >> 32), rest);
    atomicAdd(&s.count[BINS], (u32)counts);
  }
}
// The least and the greatest key in a bin of the first histogram, to the leader.
DEVICE void find_range(Shared& s, const Row& r, int bin) {
  u64 low = ~0ull, not_high = ~0ull;
  for_row(r.x, r.V, [&](float v, int id) {
    if (r.bin(v) != bin) return;
    u64 key = key_of(v, id);
    low = min(low, key);
    not_high = min(not_high, ~key);
  });
  low = warp_least(low);
  not_high = warp_least(not_high);
  if ((threadIdx.x & 31) == 0) {
    s.room[0][threadIdx.x >> 5] = low;
    s.room[1][threadIdx.x >> 5] = not_high;
  }
  __syncthreads();
  if (threadIdx.x < 64) {
    u64 least = warp_least(s.room[threadIdx.x >> 5][threadIdx.x & 31]);
    if ((threadIdx.x & 31) == 0) peer(&s, 0)->range[threadIdx.x >> 5][cluster_rank()] = least;
  }
}
// Candidates between two bins or two keys, into the list or into the histogram of keys.
DEVICE void gather(Shared& s, const Row& r, const Order& o) {
  for_row(r.x, r.V, [&](float v, int id) {
    if (o.what == GATHER_FIRSTS) {
      if (v != r.highest && !(r.highest - v < o.drop)) return;
    } else if (o.what == GATHER_BINS) {
      int bin = r.bin(v);
      if (bin < o.from_bin || bin > o.to_bin) return;
    }
    u64 key = key_of(v, id);
    if (o.what == SPLIT) {
      if (key < o.low || key > o.high) return;
      add_to_bin(s, (int)((key - o.low) >> o.shift), 1, r.mass(v));
    } else {
      if (o.what == GATHER_KEYS && (key < o.low || key > o.high)) return;
      if (*(volatile u32*)&s.gathered > BINS) return;  // too many already
      u32 at = atomicAdd(&s.gathered, 1);
      if (at < BINS) s.list[at] = key;
    }
  });
}
// The blocks' histograms added up in the leader, each block doing some of the bins.
DEVICE void merge(Shared& s, bool coarse, bool masses) {
  for (int t = threadIdx.x; t <= BINS / CLUSTER; t += THREADS) {
    int bin = cluster_rank() * (BINS / CLUSTER) + t;
    bool extra = t == BINS / CLUSTER;  // the last block's is the one beyond the bins
    if (extra && cluster_rank() != CLUSTER - 1) break;
    u64 mass = 0;
    u32 count = 0;
#pragma unroll
    for (int k = 0; k < CLUSTER; k++) {
      const Shared* from = peer(&s, k);
      count += from->count[bin];
      if (masses && !extra) mass += ((u64)from->high[bin] << 32) + from->low[bin];
    }
    Shared* leader = peer(&s, 0);
    if (extra) {
      if (coarse) leader->above_min_p = count;
    } else {
      Sums& to = coarse ? leader->coarse : leader->fine;
      to.mass[bin] = mass;
      to.count[bin] = count;
    }
  }
}
// An order, by all blocks at once; the leader has its result when this returns.
DEVICE void carry_out(Shared& s, const Row& r, const Order& o) {
  bool counts = o.what == FILL || o.what == SPLIT;
  if (counts) {
    clear_histogram(s);
    __syncthreads();
  }
  if (o.what == FILL) {
    fill_bins(s, r);
  } else if (o.what == RANGE) {
    find_range(s, r, o.from_bin);
  } else if (o.what != COUNT_FIRSTS) {
    gather(s, r, o);
  }
  cluster_sync();
  if (counts || o.what == COUNT_FIRSTS) {
    merge(s, o.what != SPLIT, counts);
    cluster_sync();
  }
}

// -- the leader: functions that all of its threads call ------------------------------------------
// Sums over the lanes up to and including each.
template <typename T> DEVICE T warp_running_sum(T x) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    T y = __shfl_up_sync(FULL_MASK, x, d);
    if ((threadIdx.x & 31) >= d) x += y;
  }
  return x;
}
// Sums of x over this and all earlier threads. A barrier must come before `room` is used again.
DEVICE u64 running_sum(u64 x, u64* room) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  x = warp_running_sum(x);
  if (lane == 31) room[warp] = x;
  __syncthreads();
  return x + warp_total(lane < warp ? room[lane] : 0);
}
DEVICE void sum_up(Shared& s, Sums& h, bool masses) {
  int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  u32 count = warp_running_sum(h.count[t]);
  u64 mass = masses ? warp_running_sum(h.mass[t]) : 0;
  if (lane == 31) {
    s.room[0][warp] = mass;
    s.room[1][warp] = count;
  }
  __syncthreads();
  h.count[t] = count + (u32)warp_total(lane < warp ? s.room[1][lane] : 0);
  if (masses) h.mass[t] = mass + warp_total(lane < warp ? s.room[0][lane] : 0);
  __syncthreads();
}

// A key for each of the first n threads, sorted; ~0 for the others. s.list and s.list_mass are
// room. Up to 256: each key's place is how many are smaller, which 4 threads count.
DEVICE u64 sort_few(Shared& s, u64 key, int n) {
  int t = threadIdx.x, smaller = 0;
  s.list_mass[t] = key;
  __syncthreads();
  u64 own = s.list_mass[t >> 2];
#pragma unroll 4
  for (int i = t & 3; i < n; i += 4) smaller += s.list_mass[i] < own;
  smaller += __shfl_xor_sync(FULL_MASK, smaller, 1);
  smaller += __shfl_xor_sync(FULL_MASK, smaller, 2);
  if ((t & 3) == 0 && t >> 2 < n) s.list[smaller] = own;
  __syncthreads();
  return t < n ? s.list[t] : ~0ull;
}
// A bitonic network over the threads.
DEVICE u64 sort_many(Shared& s, u64 key, int n) {
  int t = threadIdx.x, size = 512;
  if (n > size) size = BINS;
  u64 *room = s.list_mass, *other_room = s.list;  // in turn, so that one barrier does
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int d = run / 2; d; d /= 2) {
      u64 other;
      if (d >= 32) {
        room[t] = key;
        __syncthreads();
        other = room[t ^ d];
        u64* next = other_room;
        other_room = room;
        room = next;
      } else {
        other = __shfl_xor_sync(FULL_MASK, key, d);
      }
      bool lower = !(t & d), falling = t & run;
      key = lower != falling ? min(key, other) : max(key, other);
    }
  }
  __syncthreads();
  return key;
}

// The blocks' gathered keys in s.list, sorted, with running weights; false if they are too many.
DEVICE bool sort_gathered(Shared& s, const Row& r) {
  int t = threadIdx.x;
  u64 key = ~0ull;
  u32 held[CLUSTER], start = 0;
#pragma unroll
  for (int k = 0; k < CLUSTER; k++) held[k] = peer(&s, k)->gathered;
  int block = -1, at = 0;  // where this thread's key lies
#pragma unroll
  for (int k = 0; k < CLUSTER; k++) {
    if (t - start < held[k]) {
      block = k;
      at = t - (int)start;
    }
    start += held[k];
  }
  int n = (int)start;
  if (n > BINS) return false;
  if (block >= 0) key = peer(&s, block)->list[at];
  if (n <= BINS / 4) key = sort_few(s, key, n);
  else key = sort_many(s, key, n);
  u64 mass = t < n ? r.mass(logit_of((u32)(key >> 32))) : 0;
  mass = running_sum(mass, s.room[0]) + s.mass_before;
  s.list[t] = key;
  s.list_mass[t] = mass;
  if (t == 0) {
    s.list_size = n;
    s.list_count = s.count_before;
    s.list_before = s.mass_before;
  }
  __syncthreads();
  return true;
}

// The bin of h at which the count (or mass) reaches `border`.
DEVICE int find_bin(Shared& s, const Sums& h, bool by_mass, u64 border) {
  int t = threadIdx.x;
  u64 up_to = by_mass ? h.mass[t] : h.count[t];
  u64 before = t == 0 ? 0 : by_mass ? h.mass[t - 1] : h.count[t - 1];
  if (t == 0) s.bin = BINS - 1;
  __syncthreads();
  if (before < border && border <= up_to) s.bin = t;
  __syncthreads();
  int bin = s.bin;
  __syncthreads();
  return bin;
}
// The weight that the candidates up to the border of top-p reach.
DEVICE u64 share(float p, u64 mass) {
  double wanted = ceil((double)p * (double)mass);
  return wanted < 1 ? 1 : min((u64)wanted, mass);
}
// Note the sums before bin `bin` (or its part) of h, on top of those noted before, and return how
// many candidates it has.
DEVICE u32 enter_bin(Shared& s, const Sums& h, int bin, bool afresh) {
  u32 count = bin ? h.count[bin - 1] : 0;
  u64 mass = bin ? h.mass[bin - 1] : 0;
  if (threadIdx.x == 0) {
    s.count_before = (afresh ? 0 : s.count_before) + count;
    s.mass_before = (afresh ? 0 : s.mass_before) + mass;
  }
  __syncthreads();
  return h.count[bin] - count;
}

// The farthest bin in which a border can lie.
DEVICE int farthest(Shared& s, u32 V) {
  const Options& q = s.options;
  int t = threadIdx.x;
  bool nucleus = q.top_p < 1.f, ranked = q.top_k > 0 && (u32)q.top_k < V, floor = q.min_p > 0.f;
  u64 mass = s.coarse.mass[t], mass_before = t ? s.coarse.mass[t - 1] : 0;
  u32 count = s.coarse.count[t], count_before = t ? s.coarse.count[t - 1] : 0;
  u64 reach = nucleus ? share(q.top_p, s.coarse.mass[BINS - 1]) : ~0ull;
  u32 k = ranked ? q.top_k : ~0u, likely = floor ? max(s.above_min_p, 1u) : ~0u;
  if (t < 3) s.bins[t] = BINS - 1;
  __syncthreads();
  if (count_before < k && k <= count) s.bins[TOP_K] = t;
  if (mass_before < reach && reach <= mass) s.bins[TOP_P] = t;
  if (count_before < likely && likely <= count) s.bins[MIN_P] = t;
  __syncthreads();
  // the nucleus is a share of the first k's weight: it needs them all
  if (nucleus && ranked) return s.bins[TOP_K];
  return min(s.bins[TOP_K], min(s.bins[TOP_P], s.bins[MIN_P]));
}

// What the count (or for odd steps the mass) is to reach at this border; 0 if there is none.
DEVICE u64 border_of(const Shared& s, const Spot& last, int step, u32 V) {
  const Options& q = s.options;
  u32 k = q.top_k > 0 && (u32)q.top_k < V ? q.top_k : V, likely = max(s.above_min_p, 1u);
  bool floor = q.min_p > 0.f;
  if (step == TOP_K) return k == V || (!(q.top_p < 1.f) && floor && likely < k) ? 0 : k;
  if (step == TOP_P) return q.top_p < 1.f ? share(q.top_p, last.mass) : 0;
  if (step == MIN_P) return floor && likely < last.count ? likely : 0;
  // floor(u mass / 2^24) + 1
  u64 mass = last.mass;
  return (__umul64hi(mass, q.u) << 40 | (mass * q.u) >> 24) + 1;
}

// The first of the list at which the weights reach `border`, which the last one does. One warp.
DEVICE u32 find_in_list(const Shared& s, u64 border) {
  u32 lane = threadIdx.x & 31, end = s.list_size - 1;
  u32 run = __ballot_sync(FULL_MASK, s.list_mass[min(lane * 32 + 31, end)] >= border);
  u32 start = (__ffs(run) - 1) * 32;
  return start + __ffs(__ballot_sync(FULL_MASK, s.list_mass[min(start + lane, end)] >= border)) - 1;
}
// Go on with the borders as long as the list has them; then order what the next one needs. A border
// that its own list does not have (only nan logits can do that) is passed over.
DEVICE Order next_border(Shared& s, u32 V, int end) {
  if (threadIdx.x < 32) {
    Spot last = s.last, spot = s.spot;
    int step = s.step, awaited = s.border ? step : -1;
    u64 border = 0;
#pragma unroll 1
    for (; step < end; step++) {
      border = border_of(s, last, step, V);
      if (border == 0) continue;
      bool by_mass = step & 1;
      u32 n = s.list_size;
      u64 before = by_mass ? s.list_before : s.list_count;
      u64 reach = n == 0 ? 0 : by_mass ? s.list_mass[n - 1] : (u64)s.list_count + n;
      if (before < border && border <= reach) {
        u32 at = by_mass ? find_in_list(s, border) : (u32)border - s.list_count - 1;
        spot = Spot{s.list[at], s.list_mass[at], s.list_count + at + 1};
        if (step != DRAW && spot.count < last.count) last = spot;
      } else if (step != awaited) {
        break;
      }
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      s.last = last;
      s.spot = spot;
      s.step = step;
      s.border = border;
    }
  }
  __syncthreads();
  if (s.step >= end) return Order{DONE, 0, 0, 0, s.last.key, s.last.mass};
  int bin = find_bin(s, s.coarse, s.step & 1, s.border);
  u32 held = enter_bin(s, s.coarse, bin, true);
  return Order{held <= BINS ? GATHER_BINS : RANGE, bin, bin};
}

// The next order, when one has been carried out. `end`: DRAW, or one more to draw.
DEVICE Order decide(Shared& s, const Row& r, Order o, int end) {
  const Options& q = s.options;
  if (o.what <= SPLIT && o.what != RANGE)
    sum_up(s, o.what == SPLIT ? s.fine : s.coarse, o.what != COUNT_FIRSTS);
  if (o.what <= FILL && threadIdx.x == 0) {
    s.last = s.spot = Spot{~0ull, s.coarse.mass[BINS - 1], (u32)r.V};
    s.list_size = s.list_count = s.count_before = 0;
    s.list_before = s.mass_before = s.border = 0;
    s.step = TOP_K;
  }
  if (o.what == COUNT_FIRSTS) {
    int bin = find_bin(s, s.coarse, false, q.top_k);
    // the last bin has no end; and there may be fewer threads with elements than k
    if (bin == BINS - 1 || s.coarse.count[bin] < (u32)q.top_k) return Order{FILL};
    return Order{GATHER_FIRSTS, 0, 0, 0, 0, 0, end_of_bin(bin)};
  }
  if (o.what == FILL) {
    int far = farthest(s, r.V);
    if (s.coarse.count[far] <= BINS) return Order{GATHER_BINS, 0, far};  // one list for all
    __syncthreads();
  } else if (o.what == RANGE || o.what == SPLIT) {
    u32 held = BINS + 1;
    if (o.what == RANGE) {
      o.low = o.high = ~0ull;
#pragma unroll
      for (int k = 0; k < CLUSTER; k++) {
        o.low = min(o.low, s.range[0][k]);
        o.high = min(o.high, s.range[1][k]);
      }
      o.high = ~o.high;
    } else {
      bool by_mass = s.step & 1;
      u64 before = by_mass ? s.mass_before : s.count_before;
      int part = find_bin(s, s.fine, by_mass, s.border - before);
      held = enter_bin(s, s.fine, part, false);
      o.low += (u64)part << o.shift;
      o.high = min(o.high, o.low + ((1ull << o.shift) - 1));
    }
    o.what = held <= BINS ? GATHER_KEYS : SPLIT;
    o.shift = max(0, 54 - __clzll((i64)(o.high - o.low)));
    return o;
  } else {
    bool fits = sort_gathered(s, r);
    if (o.what == GATHER_FIRSTS) {
      if (!fits || s.list_size < (u32)q.top_k) return Order{FILL};
      float weight = r.weight(logit_of((u32)(s.list[threadIdx.x] >> 32)));
      u32 likely = __syncthreads_count(threadIdx.x < s.list_size && weight >= q.min_p);
      if (threadIdx.x == 0) s.above_min_p = likely;
      __syncthreads();
    }
  }
  return next_border(s, r.V, end);
}

// -- a row ---------------------------------------------------------------------------------------
// All borders up to `end`; `spot` of the leader is the last one found. Returns the order DONE.
// `own` is the first of this thread's candidates; s.options are set.
DEVICE Order filter(Shared& s, const Row& r, u64 own, int end) {
  int top_k = s.options.top_k;
  Order o{top_k > 0 && top_k <= SHORT_CUT ? COUNT_FIRSTS : FILL};
  if (threadIdx.x == 0) s.gathered = 0;
  if (o.what == COUNT_FIRSTS) {
    clear_histogram(s);
    __syncthreads();
    if (own != ~0ull) atomicAdd(&s.count[first_bin(r.highest - logit_of((u32)(own >> 32)))], 1);
  }
#pragma unroll 1
  while (true) {
    carry_out(s, r, o);
    if (cluster_rank() == 0) {
      o = decide(s, r, o, end);
      __syncthreads();  // what was gathered has been taken by all
      if (threadIdx.x < CLUSTER) {
        Shared* block = peer(&s, threadIdx.x);
        block->order = o;
        block->gathered = 0;
      }
    }
    cluster_sync();
    o = s.order;
    if (o.what == DONE) return o;
  }
}
// One candidate is kept, whatever the weights.
DEVICE bool only_first(float temperature, const Options& q) {
  return !(temperature > 0.f) || q.top_k == 1 || q.top_p <= 0.f || q.min_p > 1.f;
}

// logits [B, V] contiguous; temperature, top_p, min_p float32 [B], top_k int32 [B]; seeds uint32
// [B, 2], counters uint32 [B] -> out int32 [B].
extern "C" __global__ IN_CLUSTERS __launch_bounds__(THREADS) void sample(
    const LOGIT* logits, const float* temperature, const int* top_k, const float* top_p,
    const float* min_p, const u32* seeds, const u32* counters, int* out, int V) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& s = *(Shared*)memory;
  pdl_launch();
  cluster_arrive();
  pdl_wait();
  int b = blockIdx.x / CLUSTER;
  const LOGIT* x = logits + (i64)b * V;
  float heat = temperature[b];
  Options q{top_p[b], min_p[b], top_k[b], counters[b]};
  u32 key0 = seeds[2 * b], key1 = seeds[2 * b + 1];
  u64 own, first = first_candidate(x, V, s.slots, own);
  if (only_first(heat, q) || !is_finite(first)) {
    if (cluster_rank() == 0 && threadIdx.x == 0) out[b] = is_finite(first) ? (int)(u32)first : -1;
    return;
  }
  if (threadIdx.x == 0) {
    q.u = philox4x32(make_uint4(q.u, 0, 0, 0), key0, key1).x >> 8;
    s.options = q;
  }
  __syncthreads();
  Row r{x, V, logit_of((u32)(first >> 32)), LOG2E / heat};
  filter(s, r, own, DRAW + 1);
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    int id = (int)(u32)s.spot.key;
    out[b] = id >= 0 && id < V ? id : (int)(u32)first;  // weights that are nan
  }
}

// As `sample` without the draw -> out float32 [B, V], the probabilities in id order.
extern "C" __global__ IN_CLUSTERS __launch_bounds__(THREADS) void filtered_probabilities(
    const LOGIT* logits, const float* temperature, const int* top_k, const float* top_p,
    const float* min_p, float* out, int V) {
  extern __shared__ __align__(16) u8 memory[];
  Shared& s = *(Shared*)memory;
  cluster_arrive();
  int b = blockIdx.x / CLUSTER;
  const LOGIT* x = logits + (i64)b * V;
  float heat = temperature[b], total = 0.f;
  Options q{top_p[b], min_p[b], top_k[b], 0};
  u64 own, last = first_candidate(x, V, s.slots, own);
  Row r{x, V, logit_of((u32)(last >> 32)), LOG2E / heat};
  if (!only_first(heat, q)) {
    if (threadIdx.x == 0) s.options = q;
    __syncthreads();
    Order o = filter(s, r, own, DRAW);
    last = o.low;
    total = (float)o.high / ONE;
  }
  float* to = out + (i64)b * V;
  for_row(x, V, [&](float v, int id) {
    float p = total > 0.f ? r.weight(v) / total : 1.f;
    to[id] = key_of(v, id) <= last ? p : 0.f;
  });
}
