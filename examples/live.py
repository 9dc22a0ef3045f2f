"""A client of `mimi-export serve`: a WAV file goes there as fast as it plays and comes back as sound.

    pip install 'mimi-export[serve]'
    mimi-export serve artifacts/ring-8cb
    python examples/live.py ws://localhost:8765 speech.wav decoded.wav

Codes go from the encoder's socket straight into the decoder's, as they would between two ends of a call.
"""

import asyncio
import json
import sys
import wave

from websockets.asyncio.client import connect

END = json.dumps({"type": "end"})
BLOCK = 0.02  # seconds of a message


async def main(url: str, source: str, target: str) -> None:
    """Encode and decode at the same time."""
    with wave.open(source, "rb") as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            sys.exit(f"{source} is not mono of 16 bits")
        rate = file.getframerate()
        speech = file.readframes(file.getnframes())
    size = 2 * int(rate * BLOCK)
    heard = []
    async with connect(f"{url}/encode?rate={rate}") as encoder, connect(f"{url}/decode?rate={rate}") as decoder:

        async def speak() -> None:
            for start in range(0, len(speech), size):
                await encoder.send(speech[start : start + size])
                await asyncio.sleep(BLOCK)
            await encoder.send(END)

        async def pass_on() -> None:
            async for message in encoder:
                if isinstance(message, bytes):
                    await decoder.send(message)
            await decoder.send(END)

        async def hear() -> None:
            async for message in decoder:
                if isinstance(message, bytes):
                    heard.append(message)
                else:
                    print(message)

        await asyncio.gather(speak(), pass_on(), hear())
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(b"".join(heard)[: len(speech)])


asyncio.run(main(*sys.argv[1:]))
