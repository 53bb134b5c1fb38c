// Arrays of decode's that are nested lists of numbers, [[[expert, …], …], …], as the reader
// announces their rows, layers and experts. In format C these are the generated rows, beside the
// prompt's rows in prefill's `prompt_routed_experts`; both must have the same number of layers and
// the same top_k. That is checked here, also for generated rows that are an object.

import { Examination, Leg } from './examination';
import { Site } from './formats/format';
import { Place } from './places';
import { Format, Prompt } from './prompt';
import { Reason } from './reason';
import { RowLists } from './row_lists';

/** Index of a dimension in the shape (rows, layers, top_k). */
const LAYERS: i32 = 1;
const TOP_K: i32 = 2;


@final
export class DecodeLists {
  /** Whether a value of nested lists is being read. */
  open: bool = false;
  private readonly rows: RowLists;

  /** What prefill brought, and what examines the rows (borrowed). */
  constructor(
    examination: Examination,
    private prompt: Prompt,
  ) {
    this.rows = new RowLists(examination, Leg.Decode);
  }

  begin(site: Site): void {
    this.open = true;
    this.rows.begin();
    site.edited();
  }

  onListed(site: Site, place: Place): void {
    if (!this.open) return;
    const isList = site.scanner.first == 0x5b;
    if (isList == (place == Place.Expert)) site.refuse(Reason.Shape);
  }

  onListedEnd(site: Site, place: Place): void {
    if (!this.open) return;
    const scanner = site.scanner;
    if (place == Place.Expert) this.rows.expert(scanner.integer);
    else if (place == Place.Layer) {
      this.checkDimension(site, TOP_K, scanner.count);
      this.rows.endLayer(scanner.count);
    } else {
      this.checkDimension(site, LAYERS, scanner.count);
      this.rows.endRow();
    }
  }

  /** The value has ended: judges its rows and tells the site of them. False when it is refused. */
  end(site: Site): bool {
    this.open = false;
    let reason = this.rows.reason;
    if (reason == Reason.None) reason = site.examination.judge();
    site.refuse(reason);
    if (reason != Reason.None) return false;
    site.covers(0, this.rows.rows);
    return true;
  }

  /** A member of an object begins while no array is open. */
  onMember(site: Site, place: Place): void {
    if (place == Place.Shape && site.scanner.first != 0x5b) this.refuseShape(site);
  }

  /** A member of an object has ended, which generated rows may be, too. */
  onMemberEnd(site: Site, place: Place): void {
    const scanner = site.scanner;
    if (place == Place.Shape && scanner.count != 3) this.refuseShape(site);
    if (place != Place.Dimension) return;
    if (scanner.index > TOP_K || scanner.integer < 0) this.refuseShape(site);
    else this.checkDimension(site, scanner.index, scanner.integer);
  }

  free(): void {
    this.rows.free();
  }

  /** Whether the rows are generated ones beside prefill's value. */
  private get checks(): bool {
    return this.prompt.format == Format.Prompt;
  }

  private refuseShape(site: Site): void {
    if (this.checks) site.refuse(Reason.Shape);
  }

  /** The rows have `size` in the dimension of this index. */
  private checkDimension(site: Site, dimension: i32, size: i64): void {
    if (!this.checks) return;
    if (dimension == LAYERS && <u64>size != this.prompt.layers) site.refuse(Reason.Layers);
    if (dimension == TOP_K && <u64>size != this.prompt.topK) site.refuse(Reason.TopK);
  }
}
