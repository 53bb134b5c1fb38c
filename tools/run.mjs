// Child processes of the tools. They never read this process's standard input, and a missing
// program is a result instead of an exception.
import { spawn } from 'node:child_process';
import { ROOT } from './paths.mjs';

/**
 * @typedef {{ code: number, output: string }} Outcome `code` is 127 when there is no such program.
 */

/**
 * Runs a program to its end and keeps what it printed.
 * @param {string} command
 * @param {string[]} args
 * @param {{ live?: boolean, env?: NodeJS.ProcessEnv }} [options]
 *   `live`: print the output as it comes instead of keeping it
 * @returns {Promise<Outcome>}
 */
export function run(command, args, { live = false, env } = {}) {
  return new Promise((resolve) => {
    const out = live ? 'inherit' : 'pipe';
    const child = spawn(command, args, {
      cwd: ROOT,
      stdio: ['ignore', out, out],
      env: { ...process.env, ...env },
    });
    let output = '';
    child.stdout?.on('data', (data) => (output += data));
    child.stderr?.on('data', (data) => (output += data));
    child.on('error', (error) => resolve({ code: 127, output: error.message }));
    child.on('close', (code) => resolve({ code: code ?? 1, output }));
  });
}

/**
 * @param {string} script
 * @param {string[]} args
 * @param {{ live?: boolean, env?: NodeJS.ProcessEnv }} [options]
 */
export const runNode = (script, args, options) => run(process.execPath, [script, ...args], options);

/**
 * The line of a program's output that says most: the last one that mentions an error, or else the
 * last one.
 * @param {string} output
 */
export function lastError(output) {
  const lines = output.split('\n').filter((line) => line.trim() !== '');
  return (lines.filter((line) => /error/i.test(line)).at(-1) ?? lines.at(-1) ?? 'no output').trim();
}
