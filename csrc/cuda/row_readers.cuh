// How a team reads a pair of rows. first(visit) reads them from memory, again(visit) a second time, from where they are
// held if they are: visit(position, student, teacher) gets kValues neighbouring classes from `position` on, which at a
// row's ends may lie outside [0, count) and are then minus infinity. Threads meet different classes, each class once.
#pragma once

#include "../ops/numbers.h"
#include "../ops/rows.h"
#include "device.cuh"

namespace plantops::cuda {

template <class T>
__device__ __forceinline__ const T* row_of(const Rows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride;
}

template <class T, class Visit>
__device__ __forceinline__ void visit_packs(
    const Visit& visit, int position, const Pack& student, const Pack& teacher) {
  Wide<T> s[kPerPack<T>], t[kPerPack<T>];
  PLANTOPS_UNROLL
  for (int k = 0; k < kPerPack<T>; ++k) {
    s[k] = unpack<T>(student, k);
    t[k] = unpack<T>(teacher, k);
  }
  visit(position, s, t);
}

// kLanes lanes of a warp hold up to kChunks packs each in registers.
template <class T, int kLanes, int kChunks>
struct RegisterRows {
  using Type = T;
  static constexpr int kValues = kPerPack<T>;
  Pack student[kChunks], teacher[kChunks];
  int begin, count;

  __device__ __forceinline__ RegisterRows(const LogitPair& logits, int64_t row, bool active)
      : begin(0), count(active ? int(logits.classes) : 0) {
    if (!active) row = 0;
    const T *s = row_of<T>(logits.student, row), *t = row_of<T>(logits.teacher, row);
    begin = int(threadIdx.x % kLanes) * kValues - values_since_boundary(s);
    PLANTOPS_UNROLL
    for (int k = 0; k < kChunks; ++k) {
      if (position(k) >= count) continue;
      student[k] = load_pack(s, position(k), count);
      teacher[k] = load_pack(t, position(k), count);
    }
  }

  template <class Visit>
  __device__ __forceinline__ void first(const Visit& visit) const {
    PLANTOPS_UNROLL
    for (int k = 0; k < kChunks; ++k)
      if (position(k) < count) visit_packs<T>(visit, position(k), student[k], teacher[k]);
  }
  template <class Visit>
  __device__ __forceinline__ void again(const Visit& visit) const {
    first(visit);
  }

 private:
  __device__ __forceinline__ int position(int k) const { return begin + k * kLanes * kValues; }
};

// A cluster of blocks shares the row, each a range of its packs, held in shared memory or (kHold false) read again.
// Either way a thread asks for the next packs before it needs them.
template <class T, int kThreads, bool kHold>
struct BlockRows {
  using Type = T;
  static constexpr int kValues = kPerPack<T>;
  const T *student, *teacher;
  Pack* held;
  int before, count, begin, end;  // values before the row in its first pack; this block's packs
  bool alike;                     // where the student has a 16-byte boundary the teacher has one

  __device__ __forceinline__ BlockRows(const LogitPair& logits, int64_t row, unsigned char* memory)
      : student(row_of<T>(logits.student, row)), teacher(row_of<T>(logits.teacher, row)),
        held(reinterpret_cast<Pack*>(memory)), before(values_since_boundary(student)), count(int(logits.classes)),
        alike(values_since_boundary(teacher) == before) {
    const int64_t packs = (before + count + kValues - 1) / kValues, rank = cluster_rank(), blocks = cluster_size();
    begin = int(packs * rank / blocks);
    end = int(packs * (rank + 1) / blocks);
  }

  template <class Visit>
  __device__ __forceinline__ void first(const Visit& visit) const {
    int p = begin + int(threadIdx.x);
    if constexpr (kHold) {
      for (; p < end; p += kThreads) {
        const int position = p * kValues - before;
        const bool inside = position >= 0 && position + kValues <= count;
        fetch(held + p - begin, student, position, inside);
        fetch(held + p - begin + end - begin, teacher, position, inside && alike);
      }
      wait_for_copies();
      again(visit);
    } else {
      if (p >= end) return;
      Pack s = load_pack(student, p * kValues - before, count), t = load_pack(teacher, p * kValues - before, count);
      PLANTOPS_NO_UNROLL
      for (;;) {
        const int position = p * kValues - before;
        Pack next_s{}, next_t{};
        p += kThreads;
        if (p < end) {
          next_s = load_pack(student, p * kValues - before, count);
          next_t = load_pack(teacher, p * kValues - before, count);
        }
        visit_packs<T>(visit, position, s, t);
        if (p >= end) break;
        s = next_s;
        t = next_t;
      }
    }
  }
  // A thread reads what it has written itself: no barrier is needed.
  template <class Visit>
  __device__ __forceinline__ void again(const Visit& visit) const {
    if constexpr (!kHold) {
      first(visit);
    } else {
      for (int p = begin + int(threadIdx.x); p < end; p += kThreads)
        visit_packs<T>(visit, p * kValues - before, held[p - begin], held[p - begin + end - begin]);
    }
  }

 private:
  __device__ __forceinline__ void fetch(Pack* to, const T* row, int position, bool whole) const {
    if (whole)
      copy_to_shared(to, row + position);
    else
      *to = load_pack(row, position, count);
  }
};

template <class A>
__device__ __forceinline__ A read_value(const Rows& rows, int64_t offset) {
  switch (rows.type) {
    case Scalar::f64: return A(static_cast<const double*>(rows.data)[offset]);
    case Scalar::f32: return A(static_cast<const float*>(rows.data)[offset]);
    case Scalar::bf16: return A(widen(static_cast<const Bfloat16*>(rows.data)[offset]));
    default: return A(widen(static_cast<const Float16*>(rows.data)[offset]));
  }
}

// Rows of any two types and any strides, one value at a time, computed in A: what the others do not serve.
template <class A, int kThreads>
struct AnyRows {
  using Type = A;
  static constexpr int kValues = 1;
  Rows student, teacher;
  int64_t student_row, teacher_row;
  int count;

  __device__ __forceinline__ AnyRows(const LogitPair& logits, int64_t row)
      : student(logits.student), teacher(logits.teacher), student_row(row * student.row_stride),
        teacher_row(row * teacher.row_stride), count(int(logits.classes)) {}

  template <class Visit>
  __device__ __forceinline__ void first(const Visit& visit) const {
    PLANTOPS_NO_UNROLL
    for (int c = int(threadIdx.x); c < count; c += kThreads) {
      const A s[1] = {read_value<A>(student, student_row + c * student.class_stride)};
      const A t[1] = {read_value<A>(teacher, teacher_row + c * teacher.class_stride)};
      visit(c, s, t);
    }
  }
  template <class Visit>
  __device__ __forceinline__ void again(const Visit& visit) const {
    first(visit);
  }
};

// Writes what a visit has computed into a contiguous row of `count` values of the reader's type.
template <class Reader>
__device__ __forceinline__ void write_values(
    const Reader& reader, void* to, Scalar type, int64_t row, int position,
    const Wide<typename Reader::Type> (&values)[Reader::kValues]) {
  using T = typename Reader::Type;
  if constexpr (Reader::kValues == kPerPack<T>) {
    store_pack(static_cast<T*>(to) + row * reader.count, position, reader.count, values);
  } else {
    const int64_t offset = row * reader.count + position;
    switch (type) {
      case Scalar::f64: static_cast<double*>(to)[offset] = double(values[0]); break;
      case Scalar::f32: static_cast<float*>(to)[offset] = float(values[0]); break;
      case Scalar::bf16: narrow(float(values[0]), static_cast<Bfloat16*>(to)[offset]); break;
      default: narrow(float(values[0]), static_cast<Float16*>(to)[offset]);
    }
  }
}

}  // namespace plantops::cuda
