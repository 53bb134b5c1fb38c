// The entry of build/test.wasm: what Node calls to test the modules of the filter that need no
// host. The product is built from assembly/index.ts, which imports nothing of this folder.
//
// Each file tests one area. It keeps one object of each kind at a time in a global, so that Node
// holds no references to managed objects. Node writes the bytes that a function reads into memory
// from `alloc`, and reads what a function has written from `outputPtr`. Counts and offsets cross as
// f64, which holds them exactly and is not a BigInt in Node.

export * from './base64';
export * from './bytes';
export * from './configuration';
export * from './endpoints';
export * from './json';
export * from './npy';
export * from './ranks';
export * from './reply';
export * from './requests';
export * from './response';
export * from './rows';
