use ort::{memory::Allocator, session::Session, value::{DynValue, Tensor}};
use std::{env, error::Error, fs};

const FRAME: usize = 1920; // samples at 24000 Hz

struct Stream {
    session: Session,
    inputs: Vec<String>, // the data, then the states; outputs come in the same order
    outputs: Vec<String>,
    states: Vec<DynValue>,
}

impl Stream {
    fn new(path: String) -> Result<Self, Box<dyn Error>> {
        let session = Session::builder()?.with_intra_threads(1)?.commit_from_file(path)?;
        let mut states = Vec::new();
        for input in session.inputs.iter().skip(1) {
            let sizes = input.input_type.tensor_shape().ok_or("a state is no tensor")?;
            // free sizes are -1: a batch of one; keys and values begin with length 0
            let free = |axis: usize| if axis == 0 { 1 } else { 0 };
            let shape: Vec<i64> =
                sizes.iter().enumerate().map(|(axis, &size)| if size < 0 { free(axis) } else { size }).collect();
            states.push(match shape.iter().product::<i64>() {
                0 => Tensor::<f32>::new(&Allocator::default(), shape)?.into_dyn(),
                count => Tensor::from_array((shape, vec![0f32; count as usize]))?.into_dyn(),
            });
        }
        let inputs = session.inputs.iter().map(|input| input.name.clone()).collect();
        let outputs = session.outputs.iter().map(|output| output.name.clone()).collect();
        Ok(Self { session, inputs, outputs, states })
    }

    fn call(&mut self, data: DynValue) -> Result<DynValue, Box<dyn Error>> {
        let tensors = std::iter::once(data).chain(self.states.drain(..));
        let feeds: Vec<(String, DynValue)> = self.inputs.iter().cloned().zip(tensors).collect();
        let mut results = self.session.run(feeds)?;
        for name in &self.outputs[1..] {
            self.states.push(results.remove(name).ok_or("a state is missing")?);
        }
        Ok(results.remove(&self.outputs[0]).ok_or("the result is missing")?)
    }
}

fn read_wav(path: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let wav = fs::read(path)?;
    let number = |start: usize| u32::from_le_bytes([wav[start], wav[start + 1], wav[start + 2], wav[start + 3]]);
    // mono in bytes 22 and 23, the rate in 24 to 27, bits in 34 and 35
    if wav[22..28] != [1, 0, 0xc0, 0x5d, 0, 0] || wav[34..36] != [16, 0] {
        return Err(format!("{path}: expected 24000 Hz, mono, 16 bit").into());
    }
    let mut start = 12; // chunks of a name, a size and content
    while &wav[start..start + 4] != b"data" {
        start += 8 + number(start + 4) as usize;
    }
    let content = &wav[start + 8..start + 8 + number(start + 4) as usize];
    Ok(content.chunks_exact(2).map(|bytes| i16::from_le_bytes([bytes[0], bytes[1]]) as f32 / 32768.0).collect())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, directory, source, target] = arguments.as_slice() else { return Err("DIRECTORY IN.wav OUT.f32".into()) };
    let mut encoder = Stream::new(format!("{directory}/encoder_model.onnx"))?;
    let mut decoder = Stream::new(format!("{directory}/decoder_model.onnx"))?;
    let mut decoded: Vec<u8> = Vec::new();
    for chunk in read_wav(source)?.chunks(FRAME) {
        let mut frame = chunk.to_vec();
        frame.resize(FRAME, 0.0); // the last one is filled with zeros
        let codes = encoder.call(Tensor::from_array(([1usize, 1, FRAME], frame))?.into_dyn())?; // i64 [1, codebooks, 1]
        let audio = decoder.call(codes)?;
        let (_, values) = audio.try_extract_tensor::<f32>()?;
        decoded.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    fs::write(target, decoded)?;
    Ok(())
}
