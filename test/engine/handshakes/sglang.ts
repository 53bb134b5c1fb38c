// SGLang's disaggregation: both engines get the same request at the same time and meet in its room
// at prefill's bootstrap server.

import { ApiError, EngineError, type Bootstrap, type Call } from '../call.ts';
import { sameTokens, type Fleet, type PrefillEngine } from '../fleet.ts';
import { never, within, type Meeting, type Place } from '../meeting.ts';
import { DEFAULT_BOOTSTRAP, type Address, type EngineOptions } from '../options.ts';
import type { Agreement, Handshake } from './handshake.ts';

const PATIENCE = 300_000;

/** The place of one sample of one prompt in its room. */
interface Seat {
  room: bigint;
  tokens: readonly number[];
  meeting: Meeting;
  mine: Place;
  theirs: Place;
}

export class SglangBootstrap implements Handshake, PrefillEngine {
  readonly engineIds = [];

  constructor(
    private readonly options: EngineOptions,
    private readonly fleet: Fleet,
  ) {
    if (options.role === 'prefill') fleet.prefills.add(this);
  }

  get address(): Address {
    return this.options.bootstrap ?? DEFAULT_BOOTSTRAP;
  }

  async begin(call: Call): Promise<Agreement> {
    const bootstrap = call.sglang?.bootstrap;
    if (!bootstrap) {
      throw new ApiError(400, 'Invalid request: Disaggregated request received without bootstrap room id');
    }
    this.#checkAddresses(bootstrap);
    const shared = call.n > 1 && !this.options.parallelSampling;
    const seats = shared ? [] : this.#take(call, bootstrap);
    const met = await within(
      shared ? never() : Promise.all(seats.map(({ theirs }) => theirs.here)),
      this.options.patience ?? PATIENCE,
    );
    if (!met) {
      for (const { mine } of seats) mine.leave();
      const state = this.#prefills ? 'Bootstrapping' : 'WaitingForInput';
      throw this.#failed('transfer', bootstrap.rooms[0]!, `timed out in KVPoll.${state}`);
    }
    if (this.#prefills) {
      return {
        external: () => null,
        prefillOnly: true,
        end: (choices) => {
          choices.forEach(({ of }, i) => seats[i]!.meeting.sent(of.cached ?? 0));
          return null;
        },
      };
    }
    const other = seats.find(({ tokens }, i) => !sameTokens(tokens, met[i]!));
    if (other) throw this.#failed('transfer', other.room, 'the KV is of another prompt');
    // SGLang's decode reports the number of cached tokens that prefill reported to it
    // (sglang/srt/disaggregation/decode.py, `req.cached_tokens`).
    const cached = await Promise.all(seats.map(({ meeting }) => meeting.transfer));
    return {
      external: (p) => ({ pulled: met[p * call.n]!, complete: { cached: cached[p * call.n]! } }),
    };
  }

  get #prefills(): boolean {
    return this.options.role === 'prefill';
  }

  #checkAddresses({ hosts, ports, rooms }: Bootstrap): void {
    rooms.forEach((room, i) => {
      const prefill = this.fleet.prefillAt(hosts[i]!, ports[i]!);
      if (this.#prefills ? prefill === this : prefill) return;
      throw this.#failed('handshake', room, `no prefill info from ${hosts[i]}:${ports[i]}`);
    });
  }

  #take(call: Call, { hosts, ports, rooms }: Bootstrap): Seat[] {
    const seats = call.prompts.flatMap(({ tokens }, p) =>
      Array.from({ length: call.n }, (_, sample): Seat => {
        const room = rooms[p]! + BigInt(sample);
        const meeting = this.fleet.meeting(`room ${hosts[p]}:${ports[p]} ${room}`);
        const { prefill, decode } = meeting;
        const [mine, theirs] = this.#prefills ? [prefill, decode] : [decode, prefill];
        return { room, tokens, meeting, mine, theirs };
      }),
    );
    seats.forEach(({ room, tokens, mine }, i) => {
      if (mine.arrive(tokens)) return;
      for (const seat of seats.slice(0, i)) seat.mine.leave();
      throw this.#failed('handshake', room, 'the room was used before');
    });
    return seats;
  }

  #failed(stage: 'handshake' | 'transfer', room: bigint, why: string): EngineError {
    const what = this.#prefills ? 'Prefill bootstrap' : `Decode ${stage}`;
    return new EngineError(`${what} failed for request: KVTransferError(bootstrap_room=${room}): ${why}`);
  }
}
