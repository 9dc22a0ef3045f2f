// The declarations of `ort` 2.0.0-rc.10 that the program of the model card uses: for the type checker, not to be run.
#![allow(dead_code, unused_variables)]
use std::{borrow::Cow, error, fmt, marker::PhantomData, ops::Deref, path::Path};

#[derive(Debug)]
pub struct Error(());
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        unimplemented!()
    }
}
impl error::Error for Error {}
pub type Result<T> = std::result::Result<T, Error>;

pub mod memory {
    #[derive(Default)]
    pub struct Allocator(());
}

pub mod tensor {
    pub struct Shape(Vec<i64>);
    impl super::Deref for Shape {
        type Target = [i64];
        fn deref(&self) -> &[i64] {
            &self.0
        }
    }
    impl From<Vec<i64>> for Shape {
        fn from(sizes: Vec<i64>) -> Self {
            Self(sizes)
        }
    }
    pub trait ToShape {}
    impl ToShape for Vec<i64> {}
    impl<const N: usize> ToShape for [usize; N] {}
    pub trait PrimitiveTensorElementType {}
    impl PrimitiveTensorElementType for f32 {}
    impl PrimitiveTensorElementType for i64 {}
}

pub mod value {
    use super::{memory::Allocator, tensor::*, PhantomData, Result};

    pub struct Value<T: ?Sized>(PhantomData<T>);
    pub struct DynValueTypeMarker;
    pub struct TensorValueTypeMarker<T>(PhantomData<T>);
    pub type DynValue = Value<DynValueTypeMarker>;
    pub type Tensor<T> = Value<TensorValueTypeMarker<T>>;

    pub trait OwnedTensorArrayData<T> {}
    impl<D: ToShape, T> OwnedTensorArrayData<T> for (D, Vec<T>) {}

    impl<T: PrimitiveTensorElementType> Tensor<T> {
        pub fn new(allocator: &Allocator, shape: impl Into<Shape>) -> Result<Tensor<T>> {
            unimplemented!()
        }
        pub fn from_array(input: impl OwnedTensorArrayData<T>) -> Result<Tensor<T>> {
            unimplemented!()
        }
    }
    impl<M> Value<M> {
        pub fn into_dyn(self) -> DynValue {
            unimplemented!()
        }
        pub fn try_extract_tensor<T: PrimitiveTensorElementType>(&self) -> Result<(&Shape, &[T])> {
            unimplemented!()
        }
    }

    pub struct ValueType(());
    impl ValueType {
        pub fn tensor_shape(&self) -> Option<&Shape> {
            unimplemented!()
        }
    }
}

pub mod session {
    use super::{value::*, Cow, Path, Result};

    pub struct Input {
        pub name: String,
        pub input_type: ValueType,
    }
    pub struct Output {
        pub name: String,
        pub output_type: ValueType,
    }
    pub struct Session {
        pub inputs: Vec<Input>,
        pub outputs: Vec<Output>,
    }
    pub struct SessionBuilder(());
    pub struct SessionInputValue<'v>(&'v ());
    pub struct SessionInputs<'i, 'v>(&'i (), &'v ());
    pub struct SessionOutputs<'r>(&'r ());

    impl<M> From<Value<M>> for SessionInputValue<'_> {
        fn from(value: Value<M>) -> Self {
            unimplemented!()
        }
    }
    impl<'i, 'v, K: Into<Cow<'i, str>>, V: Into<SessionInputValue<'v>>> From<Vec<(K, V)>> for SessionInputs<'i, 'v> {
        fn from(values: Vec<(K, V)>) -> Self {
            unimplemented!()
        }
    }
    impl Session {
        pub fn builder() -> Result<SessionBuilder> {
            unimplemented!()
        }
        pub fn run<'s, 'i, 'v: 'i>(&'s mut self, inputs: impl Into<SessionInputs<'i, 'v>>) -> Result<SessionOutputs<'s>> {
            unimplemented!()
        }
    }
    impl SessionBuilder {
        pub fn with_intra_threads(self, threads: usize) -> Result<Self> {
            unimplemented!()
        }
        pub fn commit_from_file(self, path: impl AsRef<Path>) -> Result<Session> {
            unimplemented!()
        }
    }
    impl SessionOutputs<'_> {
        pub fn remove(&mut self, key: impl AsRef<str>) -> Option<DynValue> {
            unimplemented!()
        }
    }
    // the real one frees what it holds, so it lives to the end of its scope
    impl Drop for SessionOutputs<'_> {
        fn drop(&mut self) {}
    }
}
