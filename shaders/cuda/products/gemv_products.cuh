// How a GEMV multiplies a lane's chunks of weights with x in shared memory: as floats, as int8, or
// by digits on tensor cores (gemv_rows.cuh, after whose constants it comes).
struct Sums {
  Sum at[PER_LANE][ROWS][SUMS];

  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < PER_LANE * ROWS * SUMS; i++) (&at[0][0][0])[i] = 0;
  }
  DEVICE Sum total(int r, int m) const {
    return SUMS == 2 ? at[r][m][0] + at[r][m][SUMS - 1] : at[r][m][0];
  }
};

// x: the shared rows, at the first value that this lane reads for the chunk.
DEVICE void multiply_int8(const Chunk (&w)[PER_LANE], const i8* x, int stride, Sums& sums) {
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
    const uint4 v = *(const uint4*)(x + m * stride);
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        Sum& sum = sums.at[r][m][SUMS == 2 ? i & 1 : 0];
        sum = __dp4a((int)w[r].word[i], (int)word[i], (int)sum);
      }
  }
}

// What the groups of a chunk are multiplied by, and what is added to each of their inputs.
struct Affine {
  static const int SPAN = Chunk::ELEMENTS / Chunk::SCALES;  // inputs of a chunk that share a scale
  float scale[Chunk::SCALES], offset[Chunk::SCALES];

  // n: the row in the stage; chunk: in its row.
  DEVICE void load(const u8* stage, int n, int chunk) {
#pragma unroll
    for (int i = 0; i < (GROUPED ? Chunk::SCALES : 0); i++) {
      const int k = chunk * Chunk::ELEMENTS, g = k / GROUP_INPUTS + i;
      const int super = n * SUPERS + k / SUPER_INPUTS;
      scale[i] = full_scale(((const SCALE_T*)(stage + SCALES_AT))[n * SCALES + g],
                            SUPER ? ((const float*)(stage + SUPERS_AT))[super] : 1.f);
      if (!OFFSETS) continue;
      offset[i] = full_offset(((const OFFSET_T*)(stage + OFFSETS_AT))[n * SCALES + g],
                              FLOORS ? ((const float*)(stage + FLOORS_AT))[super] : 1.f, scale[i]);
    }
  }
};
// C begins with the bits of the float 1.5 * 2^23: so it ends with those of that plus its sum.
#define SUM_BITS 0x4b400000u
DEVICE float sum_of(u32 bits) { return __uint_as_float(bits) - 12582912.f; }

// digits, blocks: of the first row of x, what this lane reads for the chunk. inside: whether the
// lane has a chunk, else it only helps the others; has_digits: as a column of B.
template <bool LAST>
DEVICE void multiply_digits(const Chunk (&w)[PER_LANE], const Affine (&affine)[PER_LANE],
                            const i8* digits, const float* blocks, int pitch, bool inside,
                            bool has_digits, Sums& sums) {
#pragma unroll
  for (int span = 0; span < Chunk::ELEMENTS; span += Affine::SPAN)
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
      float part[PER_LANE], x_sum = 0.f;
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) part[r] = 0.f;
#pragma unroll
      for (int j = span; j < span + Affine::SPAN; j += 16) {
        uint4 x = make_uint4(0, 0, 0, 0);
        if (has_digits) x = *(const uint4*)(digits + m * pitch + j / 16 * BETWEEN);
        const float* block = blocks + m * (pitch / 4) + j / 16 * BLOCK_FLOATS;
        const float2 both = SUMMED ? *(const float2*)block : make_float2(*block, 0.f);
        x_sum += both.y;
#pragma unroll
        for (int r = 0; r < PER_LANE; r += 2) {
          u32 c[4] = {SUM_BITS, SUM_BITS, SUM_BITS, SUM_BITS};
          const int i = j / 4;
          const u32 left[4] = {w[r].raised(i), w[r + 1].raised(i), w[r].raised(i + 1),
                               w[r + 1].raised(i + 1)};
          const u32 right[4] = {w[r].raised(i + 2), w[r + 1].raised(i + 2), w[r].raised(i + 3),
                                w[r + 1].raised(i + 3)};
          mma_16832<SIGNED>(c, left, x.x, x.y);
          mma_16832<SIGNED>(c, right, x.z, x.w);
          part[r] = fmaf(both.x, fmaf(256.f, sum_of(c[0]), sum_of(c[1])), part[r]);
          part[r + 1] = fmaf(both.x, fmaf(256.f, sum_of(c[2]), sum_of(c[3])), part[r + 1]);
        }
      }
      if (LAST && !inside) continue;
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) {
        Sum& sum = sums.at[r][m][SUMS == 2 ? span / Affine::SPAN & 1 : 0];
        if (ZERO) part[r] = fmaf(-(float)ZERO, x_sum, part[r]);
        sum = GROUPED ? fmaf(affine[r].scale[span / Affine::SPAN], part[r], sum) : sum + part[r];
        if (OFFSETS) sum = fmaf(affine[r].offset[span / Affine::SPAN], x_sum, sum);
      }
    }
}

template <typename T>
DEVICE void multiply(const Chunk (&w)[PER_LANE], const Affine (&affine)[PER_LANE], const T* x,
                     int stride, Sums& sums) {
#pragma unroll
  for (int span = 0; span < Chunk::ELEMENTS; span += Affine::SPAN) {
    float part[PER_LANE][ROWS][SUMS], x_sum[ROWS];
    if (GROUPED) {
#pragma unroll
      for (int i = 0; i < PER_LANE * ROWS * SUMS; i++) (&part[0][0][0])[i] = 0.f;
#pragma unroll
      for (int m = 0; m < ROWS; m++) x_sum[m] = 0.f;
    }
#pragma unroll
    for (int j = span; j < span + Affine::SPAN; j += V) {
      Vec<T, V> values[ROWS];
#pragma unroll
      for (int m = 0; m < ROWS; m++) values[m] = load_vec<T, V>(x + m * stride + j * LANES);
#pragma unroll
      for (int i = 0; i < V; i += 4) {
        float xf[ROWS][4];
#pragma unroll
        for (int m = 0; m < ROWS; m++) {
#pragma unroll
          for (int e = 0; e < 4; e++) xf[m][e] = values[m][i + e];
          if (OFFSETS) x_sum[m] += (xf[m][0] + xf[m][1]) + (xf[m][2] + xf[m][3]);
        }
#pragma unroll
        for (int r = 0; r < PER_LANE; r++) {
          float wf[4];
          w[r].four((j + i) / 4, wf);
#pragma unroll
          for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
              const int s = SUMS == 2 ? e & 1 : 0;
              if (GROUPED) part[r][m][s] = fmaf(wf[e], xf[m][e], part[r][m][s]);
              else sums.at[r][m][s] = fmaf(wf[e], xf[m][e], sums.at[r][m][s]);
            }
        }
      }
    }
    const int i = span / Affine::SPAN;
#pragma unroll
    for (int r = 0; r < (GROUPED ? PER_LANE : 0); r++)
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
#pragma unroll
        for (int s = 0; s < SUMS; s++)
          sums.at[r][m][s] = fmaf(affine[r].scale[i], part[r][m][s], sums.at[r][m][s]);
        if (OFFSETS)
          sums.at[r][m][0] = fmaf(affine[r].offset[i], x_sum[m], sums.at[r][m][0]);
      }
  }
}
