// The CUDA kernels of planted_conv2d, run by the emulator, against sums written out in double.
#include "emulator.h"

#include "../cuda/planted_conv2d.cu"
#include "../cuda/planted_conv2d_weight.cu"
#include "row_cases.h"

using namespace cases;
using plantops::PlantedChannels;
using plantops::cuda::ConvGeometry;
using plantops::cuda::Image;

namespace {

// [n, c, h, w], dense NCHW or channels_last with `gap` foreign channels behind the own ones; surroundings are NaN.
class Tensor {
 public:
  Tensor(int64_t n, int64_t c, int64_t h, int64_t w, Scalar type, bool last = false, int64_t gap = 0)
      : n_(n), c_(c), h_(h), w_(w), type_(type), cells_(n * h * w, c + gap, type) {
    strides_ = last ? std::array{h * w * (c + gap), int64_t(1), w * (c + gap), c + gap}
                    : std::array{(c + gap) * h * w, h * w, w, int64_t(1)};
    for (int64_t i = 0; i < n * h * w * (c + gap); ++i) write(cells_.data(), type, i, NAN);
  }
  double at(int64_t n, int64_t c, int64_t h, int64_t w) { return read(cells_.data(), type_, offset(n, c, h, w)); }
  void set(int64_t n, int64_t c, int64_t h, int64_t w, double v) { write(cells_.data(), type_, offset(n, c, h, w), v); }
  Image image() { return {cells_.data(), strides_[0], strides_[1], strides_[2], strides_[3]}; }
  void* data() { return cells_.data(); }
  template <class Visit>
  void each(const Visit& visit) const {
    for (int64_t n = 0; n < n_; ++n)
      for (int64_t c = 0; c < c_; ++c)
        for (int64_t h = 0; h < h_; ++h)
          for (int64_t w = 0; w < w_; ++w) visit(n, c, h, w);
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<double> normal(0, 1);
    each([&](int64_t n, int64_t c, int64_t h, int64_t w) { set(n, c, h, w, normal(random)); });
  }
  void check_surroundings() { cells_.check_surroundings(); }

 private:
  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return n * strides_[0] + c * strides_[1] + h * strides_[2] + w * strides_[3];
  }
  int64_t n_, c_, h_, w_;
  Scalar type_;
  std::array<int64_t, 4> strides_{};
  Matrix cells_;
};

struct Case {
  const char* name;
  PlantedChannels channels;  // trunk_in, planted_in, trunk_out, planted_out, in_start
  int in_h, in_w, kernel_h, kernel_w, stride, pad, dilation, pool;
  bool relu, addend, bias, last;
  Scalar type = Scalar::f32;
  int batch = 2;
};

class Run {
 public:
  explicit Run(const Case& c)
      : c_(c), n_(c.channels), g_(geometry(c)), random_(7), input_(c.batch, n_.in(), c.in_h, c.in_w, c.type, c.last, 2),
        trunk_(n_.trunk_out, n_.trunk_in, c.kernel_h, c.kernel_w, c.type),
        in_(n_.trunk_out, n_.planted_in, c.kernel_h, c.kernel_w, c.type),
        out_(n_.planted_out, n_.in(), c.kernel_h, c.kernel_w, c.type), bias_(1, n_.trunk_out, 1, 1, c.type),
        bias_out_(1, n_.planted_out, 1, 1, c.type),
        addend_(c.batch, n_.out(), g_.out_h, g_.out_w, c.type, c.last),
        output_(c.batch, n_.out(), g_.pooled_h(), g_.pooled_w(), c.type, c.last),
        indices_(n_cells(), uint8_t(255)), grad_(c.batch, n_.out(), g_.pooled_h(), g_.pooled_w(), c.type, c.last, 1) {
    running = c.name;
    for (Tensor* t : {&input_, &trunk_, &in_, &out_, &bias_, &bias_out_, &addend_, &grad_}) t->fill(random_);
  }

  void forward() {
    plantops::cuda::ConvForward a{};
    a.geometry = g_;
    a.weights = weights();
    a.type = c_.type;
    a.input = input_.image();
    if (c_.addend) a.addend = addend_.image();
    a.output = output_.image();
    if (c_.pool > 1) a.indices = index_image();
    if (c_.bias) a.bias = bias_.data(), a.bias_out = n_.planted_out > 0 ? bias_out_.data() : nullptr;
    a.relu = c_.relu;
    expect(launch(a, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
    output_.each([&](int64_t n, int64_t o, int64_t h, int64_t w) {
      double best = NAN;
      int place = 0;
      for (int p = 0; p < c_.pool * c_.pool; ++p) {
        const double v = convolved(n, o, h * c_.pool + p / c_.pool, w * c_.pool + p % c_.pool);
        if (p == 0 || v > best) best = v, place = p;
      }
      expect_close("output", o, (n * g_.pooled_h() + h) * g_.pooled_w() + w, output_.at(n, o, h, w), best,
                   rounding(c_.type), tolerance());
      if (c_.pool > 1) {
        const int got = indices_[size_t(index_offset(n, o, h, w))];
        const double there = convolved(n, o, h * c_.pool + got / c_.pool, w * c_.pool + got % c_.pool);
        // A near tie may go either way, an exact one goes to the first.
        expect(got == place || (there != best && std::abs(there - best) <= tolerance()), "index", o, h, got, place);
      }
    });
    output_.check_surroundings();
  }

  void weight_grads() {
    weight_grad("grad of weight_out", n_.trunk_out, n_.planted_out, 0, n_.in(), c_.bias, true);
    weight_grad("grad of weight_in", 0, n_.trunk_out, n_.in_start, n_.planted_in, false, true);
    weight_grad("grad of bias_out", n_.trunk_out, n_.planted_out, 0, 0, true, false);
  }

  void input_grad(int64_t first, int64_t count) {
    if (count == 0) return;
    Tensor result(c_.batch, n_.in(), c_.in_h, c_.in_w, c_.type, c_.last);
    plantops::cuda::ConvInputGrad a{g_, weights(), c_.type, gradient(), result.image(), int(first), int(count), 0};
    expect(launch(a, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
    std::vector<double> sums(size_t(c_.batch * n_.in() * c_.in_h * c_.in_w));
    products([&](int64_t n, int64_t o, int64_t h, int64_t w, int64_t i, int64_t y, int64_t x, int64_t tap) {
      sums[size_t(((n * n_.in() + i) * c_.in_h + y) * c_.in_w + x)] += behind(n, o, h, w) * kernel(o, i, tap);
    });
    result.each([&](int64_t n, int64_t i, int64_t y, int64_t x) {
      const double got = result.at(n, i, y, x), exact = sums[size_t(((n * n_.in() + i) * c_.in_h + y) * c_.in_w + x)];
      if (i >= first && i < first + count)
        expect_close("grad of input", i, y * c_.in_w + x, got, exact, rounding(c_.type), tolerance());
      else
        expect(std::isnan(got), "untouched grad of input", i, y * c_.in_w + x, got, NAN);
    });
    result.check_surroundings();
  }

  void addend_grad() {
    Tensor result(c_.batch, n_.out(), g_.out_h, g_.out_w, c_.type, c_.last);
    const plantops::cuda::ConvAddendGrad a{g_, c_.type, gradient(), result.image(), int(n_.out())};
    expect(launch(a, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
    result.each([&](int64_t n, int64_t o, int64_t h, int64_t w) {
      expect_close("grad of addend", o, h * g_.out_w + w, result.at(n, o, h, w), behind(n, o, h, w), 0, 0);
    });
  }

 private:
  static ConvGeometry geometry(const Case& c) {
    const auto size = [&](int n, int k) { return int(plantops::conv_output_size(n, k, c.stride, c.pad, c.dilation)); };
    return {c.batch, c.in_h, c.in_w, size(c.in_h, c.kernel_h), size(c.in_w, c.kernel_w), c.kernel_h, c.kernel_w,
            c.stride, c.stride, c.pad, c.pad, c.dilation, c.dilation, c.pool};
  }
  size_t n_cells() const { return size_t(c_.batch * n_.out() * g_.pooled_h() * g_.pooled_w()); }
  double tolerance() const { return 100 * rounding(c_.type == Scalar::f64 ? Scalar::f64 : Scalar::f32); }
  plantops::cuda::ConvWeights weights() { return {n_, trunk_.data(), in_.data(), out_.data()}; }
  Image index_image() {
    return {indices_.data(), n_.out() * g_.pooled_h() * g_.pooled_w(), int64_t(g_.pooled_h()) * g_.pooled_w(),
            g_.pooled_w(), 1};
  }
  int64_t index_offset(int64_t n, int64_t o, int64_t h, int64_t w) const {
    return ((n * n_.out() + o) * g_.pooled_h() + h) * g_.pooled_w() + w;
  }
  // With `missing`, the saved tensors are those that lack the first channels.
  plantops::cuda::ConvGradient gradient(int64_t missing = 0) {
    plantops::cuda::ConvGradient g{};
    g.values = grad_.image();
    if (c_.relu) g.output = output_.image();
    if (c_.pool > 1) g.indices = index_image();
    if (c_.relu) g.output.data = static_cast<char*>(g.output.data) + missing * g.output.c * int64_t(size_of(c_.type));
    if (c_.pool > 1) g.indices.data = static_cast<char*>(g.indices.data) + missing * g.indices.c;
    g.output_missing = g.indices_missing = missing;
    return g;
  }
  double kernel(int64_t o, int64_t i, int64_t tap) {
    const int64_t y = tap / c_.kernel_w, x = tap % c_.kernel_w;
    if (o >= n_.trunk_out) return out_.at(o - n_.trunk_out, i, y, x);
    if (n_.is_planted(i)) return in_.at(o, i - n_.in_start, y, x);
    return trunk_.at(o, n_.trunk_index(i), y, x);
  }
  double convolved(int64_t n, int64_t o, int64_t h, int64_t w) {
    double v = c_.addend ? addend_.at(n, o, h, w) : 0;
    if (c_.bias) v += o < n_.trunk_out ? bias_.at(0, o, 0, 0) : bias_out_.at(0, o - n_.trunk_out, 0, 0);
    window(h, w, [&](int64_t y, int64_t x, int64_t tap) {
      for (int64_t i = 0; i < n_.in(); ++i) v += input_.at(n, i, y, x) * kernel(o, i, tap);
    });
    return c_.relu ? std::max(v, 0.0) : v;
  }
  template <class Visit>
  void window(int64_t h, int64_t w, const Visit& visit) const {
    for (int64_t tap = 0; tap < c_.kernel_h * c_.kernel_w; ++tap) {
      const int64_t y = h * c_.stride - c_.pad + tap / c_.kernel_w * c_.dilation;
      const int64_t x = w * c_.stride - c_.pad + tap % c_.kernel_w * c_.dilation;
      if (y >= 0 && y < c_.in_h && x >= 0 && x < c_.in_w) visit(y, x, tap);
    }
  }
  template <class Visit>
  void products(const Visit& visit) {
    addend_.each([&](int64_t n, int64_t o, int64_t h, int64_t w) {
      window(h, w, [&](int64_t y, int64_t x, int64_t tap) {
        for (int64_t i = 0; i < n_.in(); ++i) visit(n, o, h, w, i, y, x, tap);
      });
    });
  }
  // The gradient behind the convolution, from the output and the indices that the forward gave.
  double behind(int64_t n, int64_t o, int64_t h, int64_t w) {
    const int64_t y = h / c_.pool, x = w / c_.pool;
    if (y >= g_.pooled_h() || x >= g_.pooled_w()) return 0;
    if (c_.pool > 1 && indices_[size_t(index_offset(n, o, y, x))] != h % c_.pool * c_.pool + w % c_.pool) return 0;
    return c_.relu && output_.at(n, o, y, x) <= 0 ? 0 : grad_.at(n, o, y, x);
  }
  void weight_grad(
      const char* what, int64_t first, int64_t rows, int64_t first_in, int64_t channels, bool bias, bool weight) {
    if (rows == 0 || (channels == 0 && weight)) return;
    Tensor result(rows, std::max<int64_t>(channels, 1), c_.kernel_h, c_.kernel_w, c_.type);
    Tensor bias_result(1, rows, 1, 1, c_.type);
    plantops::cuda::ConvWeightGrad a{};
    a.geometry = g_;
    a.type = c_.type;
    a.gradient = gradient(first);
    a.input = input_.image();
    a.input.data = static_cast<char*>(a.input.data) + first_in * a.input.c * int64_t(size_of(c_.type));
    a.first = first, a.rows = int(rows), a.channels = int(channels);
    a.weight = weight ? result.data() : nullptr;
    a.bias = bias ? bias_result.data() : nullptr;
    a.splits = 3;
    std::vector<double> workspace(size_t(a.splits * rows * a.columns()), NAN);
    a.workspace = workspace.data();
    expect(launch(a, nullptr) == cudaSuccess, "launch", 0, 0, 1, 0);
    const int64_t taps = c_.kernel_h * c_.kernel_w;
    std::vector<double> sums(size_t(rows * channels * taps)), biases(static_cast<size_t>(rows));
    products([&](int64_t n, int64_t o, int64_t h, int64_t w, int64_t i, int64_t y, int64_t x, int64_t tap) {
      if (o < first || o >= first + rows || i < first_in || i >= first_in + channels) return;
      sums[size_t(((o - first) * channels + i - first_in) * taps + tap)] += behind(n, o, h, w) * input_.at(n, i, y, x);
    });
    addend_.each([&](int64_t n, int64_t o, int64_t h, int64_t w) {
      if (o >= first && o < first + rows) biases[size_t(o - first)] += behind(n, o, h, w);
    });
    if (weight)
      result.each([&](int64_t r, int64_t i, int64_t y, int64_t x) {
        const double exact = sums[size_t((r * channels + i) * taps + y * c_.kernel_w + x)];
        const int64_t column = i * taps + y * c_.kernel_w + x;
        expect_close(what, r, column, result.at(r, i, y, x), exact, rounding(c_.type), tolerance());
      });
    if (bias)
      for (int64_t r = 0; r < rows; ++r)
        expect_close("bias", r, 0, bias_result.at(0, r, 0, 0), biases[size_t(r)], rounding(c_.type), tolerance());
    result.check_surroundings();
    bias_result.check_surroundings();
  }

  Case c_;
  PlantedChannels n_;
  ConvGeometry g_;
  std::mt19937 random_;
  Tensor input_, trunk_, in_, out_, bias_, bias_out_, addend_, output_;
  std::vector<uint8_t> indices_;
  Tensor grad_;
};

void all(const Case& c) {
  Run run(c);
  run.forward();
  run.weight_grads();
  run.input_grad(c.channels.in_start, c.channels.planted_in);
  run.input_grad(0, c.channels.in());
  run.addend_grad();
}

}  // namespace

int main() {
  // {trunk_in, planted_in, trunk_out, planted_out, in_start}, height, width, kernel, stride, pad, dilation, pool;
  // relu, addend, bias, channels_last
  all({"plain", {3, 0, 4, 2, 3}, 7, 6, 3, 3, 1, 1, 1, 1, false, false, true, false});
  all({"pooled", {5, 3, 9, 4, 2}, 9, 8, 3, 3, 1, 1, 1, 2, true, true, true, false});
  all({"channels_last", {5, 3, 9, 4, 5}, 9, 7, 3, 3, 1, 1, 1, 2, true, true, true, true});
  all({"strided", {4, 2, 3, 5, 0}, 11, 10, 3, 2, 2, 2, 1, 1, true, false, false, true});
  all({"dilated", {2, 8, 8, 8, 1}, 8, 9, 2, 3, 1, 3, 2, 3, true, true, true, false});
  all({"no trunk", {0, 4, 0, 3, 0}, 6, 6, 3, 3, 1, 1, 1, 1, false, true, true, false});
  all({"double", {5, 3, 6, 4, 2}, 6, 6, 3, 3, 1, 1, 1, 2, true, true, true, false, Scalar::f64});
  all({"bfloat16", {5, 3, 6, 4, 2}, 6, 6, 3, 3, 1, 1, 1, 2, true, true, true, true, Scalar::bf16});
  all({"float16", {5, 3, 6, 4, 2}, 6, 6, 3, 3, 1, 1, 1, 1, true, false, true, false, Scalar::f16});
  // Weights of more channels than fit into shared memory at once; more columns than a block has threads.
  all({"many channels", {300, 4, 2, 3, 100}, 3, 4, 3, 3, 1, 1, 1, 2, true, false, true, false, Scalar::f32, 1});
  all({"many filters", {2, 2, 300, 2, 1}, 3, 3, 3, 3, 1, 1, 1, 1, true, false, true, true, Scalar::f32, 1});
  return failures == 0 ? 0 : 1;
}
