// Reads members of the configuration's objects. Each is checked as it is read.

import { JSON } from 'json-as';

/** The first problem of a configuration, as `path: expected …`; empty when there is none. */
@final
export class Problem {
  text: string = '';

  add(path: string, expected: string): void {
    if (this.text.length == 0) this.text = path + ': expected ' + expected;
  }
}

/** An object of the configuration. A member that is missing or wrong has its default. */
@final
export class Members {
  /** `prefix` stands before the object's keys in the text of a problem. */
  constructor(
    private readonly object: JSON.Obj,
    private readonly prefix: string,
    private readonly problem: Problem,
  ) {}

  /** Refuses keys that are not among the known ones. */
  only(known: string[]): void {
    const keys = this.object.keys();
    for (let i = 0; i < keys.length; i++) {
      if (!known.includes(keys[i])) this.wrong(keys[i], 'no such key; known are ' + known.join(', '));
    }
  }

  has(key: string): bool {
    return this.object.get(key) !== null;
  }

  get(key: string): JSON.Value | null {
    return this.object.get(key);
  }

  /**
   * Reads a member that is an object; null when it is missing or wrong. It may be missing only if
   * it is `optional`.
   */
  members(key: string, expected: string, optional: bool): Members | null {
    const value = this.object.get(key);
    if (value === null && optional) return null;
    if (value !== null && value.type == JSON.Types.Object) {
      return new Members(value.get<JSON.Obj>(), key + '.', this.problem);
    }
    this.wrong(key, expected);
    return null;
  }

  text(key: string, standard: string): string {
    const value = this.object.get(key);
    if (value === null) return standard;
    if (value.type == JSON.Types.String) return value.get<string>();
    this.wrong(key, 'a string');
    return standard;
  }

  /**
   * Reads a text that must be one of `names`, and returns its index. The first name is the default.
   */
  choice(key: string, names: string[]): i32 {
    const at = names.indexOf(this.text(key, names[0]));
    if (at < 0) this.wrong(key, 'one of ' + names.join(', '));
    return max(at, 0);
  }

  integer(key: string, least: i64, most: i64, standard: u64): u64 {
    const value = this.object.get(key);
    if (value === null) return standard;
    if (value.type == JSON.Types.F64) {
      const number = value.get<f64>();
      const whole = Math.floor(number) == number;
      if (whole && number >= <f64>least && number <= <f64>most) return <u64>number;
    }
    this.wrong(key, 'an integer from ' + least.toString() + ' to ' + most.toString());
    return standard;
  }

  /** Reads a number from 0 to 1. */
  share(key: string, standard: f64): f64 {
    const value = this.object.get(key);
    if (value === null) return standard;
    if (value.type == JSON.Types.F64) {
      const number = value.get<f64>();
      if (number >= 0 && number <= 1) return number;
    }
    this.wrong(key, 'a number from 0 to 1');
    return standard;
  }

  /** Reads an integer from 1 to `most` that must be there. */
  required(key: string, most: i64): u64 {
    if (!this.has(key)) this.wrong(key, 'an integer from 1 to ' + most.toString());
    return this.integer(key, 1, most, 0);
  }

  /** Notes that a member does not have the value that is expected. */
  wrong(key: string, expected: string): void {
    this.problem.add(this.prefix + key, expected);
  }
}
