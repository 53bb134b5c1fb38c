// Arrays of decode's that are nested lists of numbers, [[[expert, …], …], …], as the reader
// announces their rows, layers and experts. In format C these are the generated rows, beside the
// prompt's rows in prefill's `prompt_routed_experts`; both must have the same number of layers and
// the same top_k. That is checked here, also for generated rows that are an object.

import { Examination, Leg } from './examination';
import { Site } from './formats/format';
import { Place } from './places';
import { Format, Prompt } from './prompt';
import { Reason } from './reason';
import { Notice, ReplyReader } from './reply_reader';
import { RowLists } from './row_lists';

/** Index of a dimension in the shape (rows, layers, top_k). */
const LAYERS: i32 = 1;
const TOP_K: i32 = 2;


@final
export class DecodeLists {
  private readonly rows: RowLists;

  /** What prefill brought, and what examines the rows (borrowed). */
  constructor(
    examination: Examination,
    private prompt: Prompt,
  ) {
    this.rows = new RowLists(examination, Leg.Decode);
  }

  /** A value begins, whose rows, layers and experts `reader` must announce. */
  begin(site: Site, reader: ReplyReader): void {
    reader.announcesLists = true;
    this.rows.begin();
    site.edited();
  }

  /** Takes what is inside of the lists. Returns the first notice that is about something else. */
  read(site: Site, reader: ReplyReader): Notice {
    const scanner = site.scanner;
    while (site.reason == Reason.None) {
      const notice = reader.next();
      const place = reader.place;
      if (notice == Notice.Listed) {
        // An expert is a number, everything around it a list.
        if ((scanner.first == 0x5b) == (place == Place.Expert)) site.refuse(Reason.Shape);
      } else if (notice != Notice.ListedEnd) return notice;
      else if (place == Place.Expert) this.rows.expert(scanner.integer);
      else this.endList(site, place, scanner.count);
    }
    // The response is refused: nothing more is read.
    return Notice.More;
  }

  /**
   * A value has ended: judges its rows and tells the site of them. False if it had none, or is
   * refused.
   */
  end(site: Site, reader: ReplyReader): bool {
    if (!reader.announcesLists) return false;
    reader.announcesLists = false;
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

  /** A layer or a row has ended, of `count` elements. */
  private endList(site: Site, place: Place, count: i32): void {
    if (place == Place.Layer) {
      this.checkDimension(site, TOP_K, count);
      this.rows.endLayer(count);
    } else {
      this.checkDimension(site, LAYERS, count);
      this.rows.endRow();
    }
  }

  /** The rows have `size` in the dimension of this index. */
  private checkDimension(site: Site, dimension: i32, size: i64): void {
    if (!this.checks) return;
    if (dimension == LAYERS && <u64>size != this.prompt.layers) site.refuse(Reason.Layers);
    if (dimension == TOP_K && <u64>size != this.prompt.topK) site.refuse(Reason.TopK);
  }
}
