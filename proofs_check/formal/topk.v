(* Facts about top-K, for every K <= E: it has K elements, its members stand before all others, and no other K entries
   have a larger sum. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum.
From alflb Require Import definitions.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Order.
Variables (R : realDomainType) (E : nat).
Implicit Types (v : 'I_E -> R) (j k : 'I_E) (K : nat) (A B : {set 'I_E}).

Lemma beats_irreflexive v k : beats v k k = false.
Proof. by rewrite /beats ltxx ltnn andbF. Qed.

Lemma beats_trans v : transitive (beats v).
Proof.
move=> y x z /orP[xy|/andP[/eqP xy lxy]] /orP[yz|/andP[/eqP yz lyz]]; rewrite /beats.
- by rewrite (lt_trans yz xy).
- by rewrite yz xy.
- by rewrite -xy yz.
- by rewrite yz xy eqxx (ltn_trans lxy lyz) orbT.
Qed.

Lemma beats_total v k j : k != j -> beats v k j || beats v j k.
Proof.
rewrite /beats; case: (ltgtP (v j) (v k)) => //= _.
by case: (ltngtP k j) => // /val_inj ->; rewrite eqxx.
Qed.

Lemma beats_le v k j : beats v k j -> v j <= v k.
Proof. by case/orP=> [/ltW //|/andP[/eqP-> _]]. Qed.

Lemma rank_lt v k : (rank v k < E)%N.
Proof.
rewrite -[X in (_ < X)%N]card_ord -cardsT; apply/proper_card/properP.
by split; [exact: subsetT | exists k; rewrite ?inE ?beats_irreflexive].
Qed.

Lemma beats_rank v k j : beats v k j -> (rank v k < rank v j)%N.
Proof.
move=> kj; apply/proper_card/properP; split.
  by apply/subsetP=> i; rewrite !inE => /beats_trans; apply.
by exists k; rewrite !inE ?beats_irreflexive.
Qed.

Lemma rank_inj v : injective (rank v).
Proof.
by move=> k j e; apply/eqP/negPn/negP=> /(beats_total v)/orP[] /beats_rank; rewrite e ltnn.
Qed.

Theorem card_topk K v : (K <= E)%N -> #|topk K v| = K.
Proof.
move=> KE; pose r k := Ordinal (rank_lt v k).
have rI : injective r by move=> k j /(congr1 val) /rank_inj.
have -> : topk K v = r @^-1: [set k : 'I_E | (k < K)%N] by apply/setP=> k; rewrite !inE.
rewrite card_preimset // -sum1dep_card.
by rewrite -(big_ord_widen E (fun=> 1%N) KE) sum1_card card_ord.
Qed.

Lemma topk_beats K v k j : k \in topk K v -> j \notin topk K v -> beats v k j.
Proof.
rewrite !inE -leqNgt => kK Kj.
have [e|/(beats_total v)/orP[//|/beats_rank]] := eqVneq k j.
  by move: Kj; rewrite -e leqNgt kK.
by rewrite ltnNge (ltnW (leq_trans kK Kj)).
Qed.

(* Whoever stands before a member is a member. *)
Lemma beats_topk K v k j : beats v k j -> j \in topk K v -> k \in topk K v.
Proof. by rewrite !inE => /beats_rank /ltn_trans; apply. Qed.

Lemma sum_le_pairwise A B v : #|A| = #|B| -> (forall a b, a \in A -> b \in B -> v a <= v b) ->
  \sum_(a in A) v a <= \sum_(b in B) v b.
Proof.
move=> AB le_ab; have [A0|A0] := posnP #|A|.
  have B0 : #|B| = 0%N by rewrite -AB.
  by rewrite (cards0_eq A0) (cards0_eq B0) !big_set0.
rewrite -(ler_pmuln2r A0) {1}AB -!sumrMnl.
apply: (@le_trans _ _ (\sum_(a in A) \sum_(b in B) v a)).
  by apply: ler_sum => a _; rewrite sumr_const.
rewrite exchange_big /=; apply: ler_sum => b bB.
by rewrite -sumr_const; apply: ler_sum => a aA; apply: le_ab.
Qed.

(* S_K is the largest sum of K entries. *)
Theorem top_sum_max K v A : (K <= E)%N -> #|A| = K -> \sum_(k in A) v k <= top_sum K v.
Proof.
move=> KE cA; rewrite /top_sum (big_setID (topk K v)) [leRHS](big_setID A) /= setIC ler_add2l.
apply: sum_le_pairwise => [|a b].
  by apply: (@addnI #|A :&: topk K v|); rewrite cardsID setIC cardsID cA card_topk.
by rewrite !inE => /andP[na _] /andP[_ tb]; apply/beats_le/(@topk_beats K); rewrite !inE.
Qed.

(* A value between the members and the others. *)
Lemma threshold K v : exists t,
  (forall k, k \in topk K v -> t <= v k) /\ (forall k, k \notin topk K v -> v k <= t).
Proof.
have [t0|[k0 k0t]] := set_0Vmem (topk K v).
  exists (\sum_k `|v k|); split=> k; first by rewrite t0 inE.
  move=> _; rewrite (bigD1 k) //=; apply: le_trans (ler_norm _) _.
  by rewrite ler_addl sumr_ge0.
case: (@Order.TotalTheory.arg_minP _ _ _ k0 (mem (topk K v)) v k0t) => k kt le_k.
by exists (v k); split=> // j jt; apply/beats_le/(topk_beats kt jt).
Qed.

End Order.

(* ------------------------------------------------------- ranges are ranges *)
Section Ranges.
Variables (R : realDomainType).

Lemma le_bigmax (I : finType) (f : I -> R) i : f i <= \big[Num.max/0]_j f j.
Proof.
elim: (index_enum I) (mem_index_enum i) => // j r IH; rewrite inE big_cons le_maxr.
by case/orP=> [/eqP->|/IH ->]; rewrite ?lexx ?orbT.
Qed.

Lemma bigmax_le (I : finType) (f : I -> R) b : 0 <= b -> (forall i, f i <= b) ->
  \big[Num.max/0]_i f i <= b.
Proof. by move=> b0 fb; elim/big_ind: _ => // x y xb yb; rewrite le_maxl xb yb. Qed.

Lemma bigmax_ge0 (I : finType) (f : I -> R) : 0 <= \big[Num.max/0]_i f i.
Proof.
by rewrite -big_filter; elim: filter => [|i r IH]; rewrite ?big_nil // big_cons le_maxr IH orbT.
Qed.

Lemma spread_ge E (v : 'I_E -> R) j k : v j - v k <= spread v.
Proof. exact/(le_trans _ (le_bigmax _ j))/(le_bigmax (fun k => v j - v k)). Qed.

Lemma spread_ge0 E (v : 'I_E -> R) : 0 <= spread v.
Proof. exact: bigmax_ge0. Qed.

Lemma spread_le E (v : 'I_E -> R) b : 0 <= b -> (forall j k, v j - v k <= b) -> spread v <= b.
Proof. by move=> b0 vb; apply: bigmax_le => // j; apply: bigmax_le. Qed.

Variables (T E : nat) (scores : 'I_T -> 'I_E -> R).

Lemma score_range_ge i j k : scores i j - scores i k <= score_range scores.
Proof. exact/(le_trans (spread_ge _ j k))/(le_bigmax (fun i => spread (scores i))). Qed.

Lemma score_range_ge0 : 0 <= score_range scores.
Proof. exact: bigmax_ge0. Qed.

End Ranges.

(* ------------------------------------------------------------------- loads *)
Section Loads.
Variables (R : realDomainType) (T E K : nat) (scores : 'I_T -> 'I_E -> R).
Hypothesis KE : (K <= E)%N.
Implicit Types (p : 'I_E -> R) (i : 'I_T) (k : 'I_E).

Lemma sum_loads p : (\sum_k load K scores p k = K * T)%N.
Proof.
rewrite /load; under eq_bigr do rewrite -sum1dep_card big_mkcond.
rewrite exchange_big /=; under eq_bigr do rewrite -big_mkcond sum1_card card_topk //.
by rewrite sum_nat_const card_ord mulnC.
Qed.

Lemma sum_picks p (f : 'I_E -> R) :
  \sum_i \sum_(k in picks K scores p i) f k = \sum_k (load K scores p k)%:R * f k.
Proof.
under eq_bigr do rewrite big_mkcond /=.
rewrite exchange_big; apply: eq_bigr => k _ /=.
by rewrite -big_mkcond /= sumr_const mulr_natl /load cardsE.
Qed.

(* Loads depend on the values of the bias only. *)
Lemma eq_topk (v w : 'I_E -> R) : v =1 w -> topk K v = topk K w.
Proof.
move=> vw; apply/setP=> k; rewrite !inE /rank; congr (_ < _)%N.
by apply: eq_card => j; rewrite !inE /beats !vw.
Qed.

Lemma eq_load p q : p =1 q -> load K scores p =1 load K scores q.
Proof.
move=> pq k; apply: eq_card => i; rewrite !in_set; congr (_ < _)%N.
by apply: eq_card => j; rewrite !inE /beats /biased !pq.
Qed.

Lemma eq_sign_step L M u p q : L =1 M -> p =1 q ->
  sign_step K scores L u p =1 sign_step K scores M u q.
Proof. by move=> LM pq k; rewrite /sign_step LM (eq_load pq) pq. Qed.

Lemma eq_iter_sign_step L M u p q n : L =1 M -> p =1 q ->
  iter n (sign_step K scores L u) p =1 iter n (sign_step K scores M u) q.
Proof. by move=> LM pq; elim: n => //= n IH k; apply: eq_sign_step. Qed.

(* An expert that is ahead of another on every token has at least its load. *)
Lemma load_le p k j : (forall i, biased scores p i k < biased scores p i j) ->
  (load K scores p k <= load K scores p j)%N.
Proof.
move=> kj; apply/subset_leq_card/subsetP=> i; rewrite !inE.
by apply: leq_ltn_trans; apply/ltnW/beats_rank; rewrite /beats kj.
Qed.

End Loads.
