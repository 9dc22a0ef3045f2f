import sys
import wave

import numpy as np
import onnxruntime as ort


def stream(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # more of them cost twice the processor for no time
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    data, *states = session.get_inputs()
    free = {"batch": 1, "past": 0}  # one stream; keys and values begin with length 0
    tensors = [np.zeros([free.get(size, size) for size in state.shape], np.float32) for state in states]

    def call(block):
        feeds = {tensor.name: array for tensor, array in zip([data, *states], [block, *tensors])}
        result, *tensors[:] = session.run(None, feeds)
        return result

    return call


directory, source, target = sys.argv[1:]
encode, decode = stream(f"{directory}/encoder_model.onnx"), stream(f"{directory}/decoder_model.onnx")
with wave.open(source) as file:
    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (24000, 1, 2):
        sys.exit(f"{source}: expected 24000 Hz, mono, 16 bit; try ffmpeg -i {source} -ar 24000 -ac 1 OTHER.wav")
    audio = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
frames = np.pad(audio, (0, -len(audio) % 1920)).reshape(-1, 1, 1, 1920)  # the last one is filled with zeros
codes = [encode(frame) for frame in frames]  # int64 [1, codebooks, 1] each
decoded = np.concatenate([decode(code) for code in codes], axis=2)[0, 0]
with wave.open(target, "wb") as file:
    file.setparams((1, 2, 24000, 0, "NONE", ""))
    file.writeframes((decoded.clip(-1, 1) * 32767).astype(np.int16).tobytes())
