// The CUDA kernels of distillation_loss, run by the emulator, against the formula in double.
#include "emulator.h"

#include "../cuda/distillation_loss.cu"
#include "row_cases.h"

using namespace cases;

namespace {

struct Case {
  int64_t rows, classes;
  Scalar student, teacher;
  double temperature = 2.5, smoothing = 0.2, shift = 0;
  int64_t offset = 0;
};
constexpr double kAlpha = 0.3;

double row_loss(const Row& student, const Row& teacher, int64_t target, const Case& c) {
  const double t = c.temperature;
  const Softmax hard = softmax(student, 1);
  const double kl = sum(kl_terms(softmax(student, t), softmax(teacher, t)));
  double ce = -(1 - c.smoothing) * hard.log_p[size_t(target)];
  if (c.smoothing > 0) ce -= c.smoothing * sum(hard.log_p) / double(c.classes);
  return kAlpha * t * t * kl + (1 - kAlpha) * ce;
}

// The gradient of row_loss to the student's logits, and its scale: the sum of what is added up for each class.
Row row_gradient(const Row& student, const Row& teacher, int64_t target, const Case& c, Row& size) {
  const Softmax s = softmax(student, c.temperature), t = softmax(teacher, c.temperature), hard = softmax(student, 1);
  Row result;
  for (size_t k = 0; k < student.size(); ++k) {
    const double y = (int64_t(k) == target ? 1 - c.smoothing : 0) + c.smoothing / double(c.classes);
    result.push_back(kAlpha * c.temperature * (s.p[k] - t.p[k]) + (1 - kAlpha) * (hard.p[k] - y));
    size.push_back(c.temperature * (s.p[k] + t.p[k]) + hard.p[k] + y);
  }
  return result;
}

void both(const char* name, const Case& c, bool reduced) {
  running = name;
  const Scalar compute = c.student == Scalar::f64 ? Scalar::f64 : Scalar::f32;
  Matrix student(c.rows, c.classes, c.student, c.offset), teacher(c.rows, c.classes, c.teacher, 0, 1);
  Matrix lse_s_t(c.rows, 1, compute), lse_t_t(c.rows, 1, compute), lse_s(c.rows, 1, compute);
  Matrix loss(reduced ? 1 : c.rows, 1, compute), grad(c.rows, c.classes, c.student);
  Matrix upstream(reduced ? 1 : c.rows, 1, compute);
  std::mt19937 random(2);
  student.fill(random, 2, c.shift);
  teacher.fill(random, 2, -c.shift);
  upstream.fill(random, 1, 0);
  std::vector<int64_t> target;
  for (int64_t r = 0; r < c.rows; ++r) target.push_back(int64_t(random()) % c.classes);
  std::vector<double> partial(size_t(c.rows), NAN);
  const plantops::LogitPair logits{student.view(), teacher.view(), c.classes, c.temperature};
  const plantops::HardTargets hard{target.data(), kAlpha, c.smoothing};
  const double factor = reduced ? 1.0 / double(c.rows) : 1;

  const plantops::cuda::DistillationForward forward{
      logits, hard, c.rows, {factor, reduced ? partial.data() : nullptr, loss.data(), c.rows % 2 ? 3 : -1},
      reduced ? nullptr : loss.data(), lse_s_t.data(), lse_t_t.data(), lse_s.data()};
  launch(forward, nullptr);
  const plantops::cuda::DistillationBackward backward{
      logits, hard, c.rows, lse_s_t.data(), lse_t_t.data(), lse_s.data(), factor,
      reduced ? upstream.data() : nullptr, reduced ? nullptr : upstream.data(), grad.data()};
  launch(backward, nullptr);

  double total = 0;
  for (int64_t r = 0; r < c.rows; ++r) {
    const Row s = student.row(r), t = teacher.row(r);
    const double exact = row_loss(s, t, target[size_t(r)], c);
    total += exact;
    if (!reduced) expect_close("loss", r, 0, loss.at(r), exact, rounding(compute), 2 * rounding(compute));
    const double digits = rounding(compute);
    expect_close("lse_student_t", r, 0, lse_s_t.at(r), softmax(s, c.temperature).log_sum_exp, digits, digits);
    expect_close("lse_teacher_t", r, 0, lse_t_t.at(r), softmax(t, c.temperature).log_sum_exp, digits, digits);
    expect_close("lse_student", r, 0, lse_s.at(r), softmax(s, 1).log_sum_exp, digits, digits);
    Row size;
    const Row gradient = row_gradient(s, t, target[size_t(r)], c, size);
    const double g = factor * upstream.at(reduced ? 0 : r);
    for (int64_t k = 0; k < c.classes; ++k)
      expect_close("grad", r, k, grad.at(r, k), g * gradient[size_t(k)], rounding(c.student),
                   4 * rounding(compute) * std::abs(g) * size[size_t(k)] + 1e-7 * (c.student == Scalar::f16));
  }
  if (reduced) expect_close("loss", 0, 0, loss.at(0), total * factor, 2 * rounding(compute), 2 * rounding(compute));
  for (Matrix* m : {&student, &teacher, &lse_s_t, &lse_t_t, &lse_s, &loss, &grad}) m->check_surroundings();
}

}  // namespace

int main() {
  for (const bool reduced : {true, false}) {
    both("lanes", {37, 10, Scalar::f32, Scalar::f32, 2.5, 0.2, 0, 1}, reduced);
    both("lanes", {9, 100, Scalar::f32, Scalar::f32, 1.0}, reduced);
    both("lanes", {5, 1000, Scalar::f32, Scalar::f32, 4.0, 0.0, 1000, 3}, reduced);
    both("lanes", {5, 250, Scalar::bf16, Scalar::bf16, 2.5, 0.2, 0, 5}, reduced);
    both("blocks", {2, 5000, Scalar::f16, Scalar::f16, 2.5, 0.1, 0, 1}, reduced);
    both("any", {3, 300, Scalar::f64, Scalar::f32}, reduced);
    both("any", {3, 300, Scalar::bf16, Scalar::f32, 1.0}, reduced);
    emulator::device.shared_memory = 8 * 1024;
    both("clusters", {2, 3001, Scalar::f32, Scalar::f32}, reduced);
    emulator::device.major = 8;
    both("read again", {2, 3001, Scalar::f32, Scalar::f32, 2.5, 0.2, 0, 1}, reduced);
    emulator::device = {};
  }
  return failures == 0 ? 0 : 1;
}
