// How Python calls a launcher: name(where, *fields), all by place, in the order of its problem's
// list of fields, which `fields` of the module tells by the launcher's name.
//
// A call costs the reading of its arguments and no more: nothing is looked up by name, and nothing
// allocated.
#pragma once

#include <pybind11/pybind11.h>

#include <type_traits>

#include "logo/operations.h"

namespace logo {

inline bool read_integer(PyObject* from, int64_t* to) {
  *to = PyLong_AsLongLong(from);
  return *to != -1 || PyErr_Occurred() == nullptr;
}

template <class Enum>
bool read_enum(PyObject* from, Enum* to) {
  int64_t number;
  const bool ok = read_integer(from, &number);
  *to = static_cast<Enum>(number);
  return ok;
}

inline bool read_address(PyObject* from, void** to) {
  *to = PyLong_AsVoidPtr(from);
  return *to != nullptr || PyErr_Occurred() == nullptr;
}

// (address, dtype, count, strides over image, crop, element); zeros: absent.
inline bool read_rows(PyObject* from, Rows* to) {
  if (!PyTuple_Check(from) || PyTuple_GET_SIZE(from) != 6) return false;
  return read_address(PyTuple_GET_ITEM(from, 0), &to->data) &&
         read_enum(PyTuple_GET_ITEM(from, 1), &to->dtype) &&
         read_integer(PyTuple_GET_ITEM(from, 2), &to->count) &&
         read_integer(PyTuple_GET_ITEM(from, 3), &to->image_stride) &&
         read_integer(PyTuple_GET_ITEM(from, 4), &to->crop_stride) &&
         read_integer(PyTuple_GET_ITEM(from, 5), &to->element_stride);
}

// A field by its type: the kind of Python's argument, by which the package makes it, and its
// reading. False: Python does not have that kind there, whether or not an error is set.
template <class Type>
struct Argument;
template <>
struct Argument<int64_t> {
  static constexpr char kKind[] = "int";
  static bool read(PyObject* from, int64_t* to) { return read_integer(from, to); }
};
template <>
struct Argument<double> {
  static constexpr char kKind[] = "float";
  static bool read(PyObject* from, double* to) {
    *to = PyFloat_AsDouble(from);
    return *to != -1 || PyErr_Occurred() == nullptr;
  }
};
template <>
struct Argument<bool> {
  static constexpr char kKind[] = "bool";
  static bool read(PyObject* from, bool* to) {
    const int truth = PyObject_IsTrue(from);
    *to = truth > 0;
    return truth >= 0;
  }
};
template <>
struct Argument<Link> {
  static constexpr char kKind[] = "int";
  static bool read(PyObject* from, Link* to) { return read_enum(from, to); }
};
template <>
struct Argument<DType> {
  static constexpr char kKind[] = "dtype";
  static bool read(PyObject* from, DType* to) { return read_enum(from, to); }
};
template <>
struct Argument<PairReduction> {
  static constexpr char kKind[] = "pair_reduction";
  static bool read(PyObject* from, PairReduction* to) { return read_enum(from, to); }
};
template <>
struct Argument<Reduction> {
  static constexpr char kKind[] = "reduction";
  static bool read(PyObject* from, Reduction* to) { return read_enum(from, to); }
};
template <class Type>
struct Argument<Type*> {
  static constexpr char kKind[] = "address";
  static bool read(PyObject* from, Type** to) {
    void* address;
    const bool ok = read_address(from, &address);
    *to = static_cast<Type*>(address);
    return ok;
  }
};
template <>
struct Argument<Rows> {
  static constexpr char kKind[] = "rows";
  static bool read(PyObject* from, Rows* to) { return read_rows(from, to); }
};
template <>
struct Argument<MatrixRows> {
  static constexpr char kKind[] = "matrix";
  static bool read(PyObject* from, MatrixRows* to) { return read_rows(from, to); }
};
template <>
struct Argument<PairRows> {
  static constexpr char kKind[] = "pairs";
  static bool read(PyObject* from, PairRows* to) { return read_rows(from, to); }
};

inline PyObject* refuse(PyObject* launcher, const char* argument, const char* kind,
                        PyObject* given) {
  PyErr_Clear();
  return PyErr_Format(PyExc_TypeError, "%U: argument %s is to be of kind %s, and is %R; see fields",
                      launcher, argument, kind, given);
}

// One half's calls. It has
//   Launcher<Problem>               the type of its launchers
//   kWhere, read_where(from)        the kind of `where`, and its reading
//   run(launcher, problem) -> bool  without the GIL
//   raise()                         sets the error of a run that failed
//
// self: the launcher's name, for errors.
template <class Calls, class Problem, typename Calls::template Launcher<Problem> launcher>
PyObject* call(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 1 + Problem::kFields) {
    return PyErr_Format(PyExc_TypeError, "%U takes `where` and %d fields, and got %zd arguments",
                        self, Problem::kFields, count);
  }
  Calls calls;
  if (!calls.read_where(arguments[0])) {
    return refuse(self, "where", Calls::kWhere, arguments[0]);
  }
  Problem problem;
  const char *wrong = nullptr, *kind = nullptr;
  PyObject* const* argument = arguments;
  problem.each_field([&](const char* name, auto& field) {
    if (wrong != nullptr) return;
    using Read = Argument<std::remove_reference_t<decltype(field)>>;
    if (!Read::read(*++argument, &field)) {
      wrong = name;
      kind = Read::kKind;
    }
  });
  if (wrong != nullptr) return refuse(self, wrong, kind, *argument);
  bool done;
  Py_BEGIN_ALLOW_THREADS done = calls.run(launcher, problem);
  Py_END_ALLOW_THREADS if (!done) {
    calls.raise();
    return nullptr;
  }
  Py_RETURN_NONE;
}

template <class Calls, class Problem, typename Calls::template Launcher<Problem> launcher>
void bind_launcher(pybind11::module_& m, pybind11::dict& fields, const char* name) {
  static PyMethodDef definition = {
      name,
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call<Calls, Problem, launcher>)),
      METH_FASTCALL, "(where, *fields): see `fields`."};
  const pybind11::str self(name);
  PyObject* const function = PyCFunction_NewEx(&definition, self.ptr(), nullptr);
  if (function == nullptr) throw pybind11::error_already_set();
  m.add_object(name, pybind11::reinterpret_steal<pybind11::object>(function));
  pybind11::list kinds;
  Problem().each_field([&](const char* field, auto& value) {
    kinds.append(
        pybind11::make_tuple(field, Argument<std::remove_reference_t<decltype(value)>>::kKind));
  });
  fields[name] = kinds;
}

// The functions of the CUDA half, into a module.
void bind_cuda(pybind11::module_& m);

}  // namespace logo
