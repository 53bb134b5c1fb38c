// Creates a wire format by its name.

import type { EngineOptions, FormatName } from '../options.ts';
import type { MoeModel } from '../router.ts';
import { narrowed, type Format } from './format.ts';
import { npyFormat } from './npy.ts';
import { objectFormat } from './object.ts';
import { rawFormat } from './raw.ts';
import { splitFormat } from './split.ts';

export function createFormat(name: FormatName, model: MoeModel, options: EngineOptions): Format {
  const format = formatOf(name, model, options);
  return options.dtypePerReply ? narrowed(format) : format;
}

function formatOf(name: FormatName, model: MoeModel, options: EngineOptions): Format {
  switch (name) {
    case 'A':
      return npyFormat(model, options.npy);
    case 'B':
      return objectFormat(model, options.object);
    case 'C':
      return splitFormat(model, options.split);
    case 'D':
      return rawFormat();
  }
}
